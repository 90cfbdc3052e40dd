"""Dashboard page to suspend, reinstate, revoke or retire devices: one, or up to 10,000 in one act.

`authority/devices/revocation.py` does the act, and `states.py` beside it has the rules. The page
shows what would change. If the devices are others when the operator confirms, nothing is done and
the page shows them again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.responses import Response

from birthmark_sma.authority.acts.actor import Actor
from birthmark_sma.authority.acts.search import RecordedAct
from birthmark_sma.authority.devices import states
from birthmark_sma.authority.devices.revocation import (
    ActedDevice,
    ActResult,
    change_devices,
    find_named,
)
from birthmark_sma.authority.devices.states import Act, StatusChange
from birthmark_sma.counts import counted
from birthmark_sma.errors import DeviceStatusError
from birthmark_sma.pki.crl import REASONS
from birthmark_sma.protocol.verdict import DeviceStatus
from birthmark_sma.storage.engine import Database
from birthmark_sma.web.dashboard import rendering
from birthmark_sma.web.dashboard.actions.performing import (
    find_act,
    find_actor,
    find_earlier,
    perform,
    show_act,
)
from birthmark_sma.web.dashboard.actions.selection import Selection, filter_query, parse_selection
from birthmark_sma.web.dashboard.forms import read_session_form
from birthmark_sma.web.query_params import (
    Source,
    link,
    parse_choice,
    parse_text,
    parse_time,
    refused,
)
from birthmark_sma.web.routes import DEVICE_ACT
from birthmark_sma.web.server_state import ApiRequest

_LIST = "/dashboard/devices"
_DEVICE = "/dashboard/device"
_NO_REASON = "unspecified"
_SHOWN = 10  # serials that the page lists
_CHANGED = (
    "The devices changed since this page was made. Nothing was done. These are the devices now."
)

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Job:
    """An act on selected devices, as a form or link asks for it."""

    act: Act
    selection: Selection
    reason: str | None
    since: datetime | None

    def change(self, actor: Actor) -> StatusChange:
        """Return the change of status that the act makes."""
        match self.act:
            case Act.SUSPEND:
                return states.suspend(actor)
            case Act.REINSTATE:
                return states.reinstate(actor)
            case Act.RETIRE:
                return states.retire(actor)
            case Act.REVOKE:
                return states.revoke(actor, self.reason or _NO_REASON, self.since)


@dataclass(frozen=True, slots=True)
class Preview:
    """The effect that a job would have. `fingerprint` is that of all selected devices."""

    job: Job
    hit: Sequence[ActedDevice]
    already: int
    """Devices that have the status already."""
    refused: Counter[str]
    """Devices whose status does not allow the act, by status."""
    unknown: Sequence[str]
    fingerprint: str

    @property
    def needs_number(self) -> bool:
        """Return True if the operator must type the number of devices."""
        return self.job.act.is_final and len(self.hit) > 1


async def show_preview(request: ApiRequest) -> Response:
    """Show what a job would change, and ask for confirmation."""
    return await _answer(request, _parse_job(request))


async def act(request: ApiRequest) -> Response:
    """Do a job that the operator has confirmed, or show what it would change.

    Raises RequestError if the form comes from another site.
    """
    form = await read_session_form(request)
    job = _parse_job(form)
    if not parse_text(form, "confirmed"):
        return await _answer(request, job)
    seen = form.get("seen", "")
    number = parse_text(form, "number") or ""
    return await _answer(request, job, seen, number.replace(",", ""))


router.add_api_route(DEVICE_ACT.path, show_preview, methods=["GET"])
router.add_api_route(DEVICE_ACT.path, act, methods=["POST"])


def _parse_job(source: Source) -> Job:
    act = parse_choice(source, "act", Act)
    if act is None:
        raise refused(f"act is one of {', '.join(Act)}.")
    reason = parse_text(source, "reason")
    if reason is not None and reason not in REASONS:
        raise refused(f"reason is one of {', '.join(REASONS)}.")
    return Job(act, parse_selection(source), reason, parse_time(source, "since"))


async def _answer(
    request: ApiRequest, job: Job, seen: str | None = None, number: str = ""
) -> Response:
    """Show the preview, or do the job if `seen` is the fingerprint of the confirmed preview."""
    database = request.server.authority.database

    def work() -> Response:
        preview = _preview(database, job, find_actor(request))
        if seen is None:
            return _show(request, database, preview)
        if preview.fingerprint != seen:
            return _show_changed(request, database, preview)
        if preview.needs_number and number != str(len(preview.hit)):
            fault = f"Type {len(preview.hit)}, the number of devices, to confirm. Nothing was done."
            return _show(request, database, preview, fault, 422)
        return _do(request, database, preview)

    return await perform(request, work)


def _preview(database: Database, job: Job, actor: Actor) -> Preview:
    with database.read() as connection:
        serials = job.selection.list_serials(connection)
    # Times and reasons are checked by the act, whose error the page shows beside the fields.
    change = Job(job.act, job.selection, None, None).change(actor)
    found = change_devices(database, serials, change, dry_run=True)
    hit, again = found.changed, list[ActedDevice]()
    if job.act is Act.REVOKE:
        revoked = [e for e in (*hit, *found.unchanged) if e.status is DeviceStatus.REVOKED]
        others = [each for each in hit if each.status is not DeviceStatus.REVOKED]
        # Another reason for a revoked device depends on that reason: a job for one device alone.
        hit, again = (revoked, []) if len(serials) == 1 and revoked else (others, revoked)
    already = len(again) if job.act is Act.REVOKE else len(found.unchanged)
    by_status = Counter(each.status.value for each in found.refused)
    return Preview(job, hit, already, by_status, found.unknown, found.fingerprint)


def _do(request: ApiRequest, database: Database, preview: Preview) -> Response:
    change = preview.job.change(find_actor(request))
    serials = [each.device_serial for each in preview.hit]
    if not serials:
        return _show(request, database, preview, "Nothing was done.", 409)
    if change.act is Act.REVOKE and preview.job.reason is None:
        return _show(request, database, preview, "Choose a reason. Nothing was done.", 422)
    try:
        result = change_devices(
            database,
            serials,
            change,
            expected=ActResult(changed=list(preview.hit)).fingerprint,
            chosen_by=preview.job.selection.facts,
        )
    except DeviceStatusError as error:  # a reason or a time that does not fit
        return _show(request, database, preview, f"{error} Nothing was done.", 422)
    if result.is_outdated or result.is_prevented:
        return _show_changed(request, database, _preview(database, preview.job, change.actor))
    if not result.changed:
        fault = "The device is revoked already, for a reason as strong as this. Nothing was done."
        return _show(request, database, preview, fault, 409)
    with database.read() as connection:
        return show_act(find_act(connection, request))


def _show_changed(request: ApiRequest, database: Database, preview: Preview) -> Response:
    """Show the act if this form has done it before, perhaps a moment ago; else the devices now."""
    done = _find_done(request, database, preview)
    return show_act(done) if done else _show(request, database, preview, _CHANGED, 409)


def _find_done(request: ApiRequest, database: Database, preview: Preview) -> RecordedAct | None:
    """Return the act that this form has done before, or None."""
    with database.read() as connection:
        serials = preview.job.selection.list_serials(connection)
        act = preview.job.act
        if not serials or any(each.status is not act.status for each in preview.hit):
            return None
        return find_earlier(connection, request, act.kind, serials[0])


def _show(
    request: ApiRequest,
    database: Database,
    preview: Preview,
    fault: str | None = None,
    status: int = 200,
) -> Response:
    with database.read() as connection:
        values = _describe(connection, preview)
    html = rendering.render(request, "actions/device_act.html", fault=fault, **values)
    return rendering.html_response(html, status)


def _describe(connection: Connection, preview: Preview) -> dict[str, Any]:
    job, hit = preview.job, preview.hit
    selected = len(hit) + preview.already + preview.refused.total() + len(preview.unknown)
    only = None
    if selected == 1:
        [serial] = job.selection.list_serials(connection)
        only = find_named(connection, serial)
    back = link(_LIST, {} if job.selection.wanted is None else filter_query(job.selection.wanted))
    if only is not None:
        back = link(_DEVICE, {"serial": only.device_serial})
    by_state = Counter((each.device_family, each.status.value) for each in hit)
    return {
        "job": job,
        "preview": preview,
        "back": back,
        "after": job.act.status.value,
        "device": only,
        "subject": only.device_serial if only else counted(len(hit), "device"),
        "by_state": sorted(by_state.items()),
        "shown": [each.device_serial for each in hit[:_SHOWN]],
        "more": max(0, len(hit) - _SHOWN),
        "reasons": list(REASONS),
    }
