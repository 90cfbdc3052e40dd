"""The page that undoes an act, for the page of the act. PURE."""

from typing import NamedTuple

from birthmark_sma.authority.acts.actor import ActKind
from birthmark_sma.authority.acts.search import RecordedAct
from birthmark_sma.authority.devices.states import Act
from birthmark_sma.web.query_params import link
from birthmark_sma.web.routes import DEVICE_ACT, RE_ENROLMENT

_ACTS = {ActKind.DEVICE_SUSPEND: Act.REINSTATE, ActKind.DEVICE_REINSTATE: Act.SUSPEND}
_PERMISSIONS = {
    ActKind.DEVICE_ALLOW_RE_ENROLMENT: "forbid re-enrolment",
    ActKind.DEVICE_FORBID_RE_ENROLMENT: "allow re-enrolment",
}


class Undo(NamedTuple):
    """A link to the page that undoes an act: its route, its URL, and its name for people."""

    path: str
    url: str
    label: str


def find_undo(act: RecordedAct) -> Undo | None:
    """Return the page that undoes an act, or None if nothing does.

    The page shows the present state, and offers nothing if the act is undone already.
    """
    if act.act in _ACTS:
        opposite = _ACTS[ActKind(act.act)]
        url = link(DEVICE_ACT.path, {"act": opposite, "of": act.id})
        return Undo(DEVICE_ACT.path, url, opposite.value)
    if act.act in _PERMISSIONS:
        url = link(RE_ENROLMENT.path, {"serial": act.subject})
        return Undo(RE_ENROLMENT.path, url, _PERMISSIONS[ActKind(act.act)])
    return None
