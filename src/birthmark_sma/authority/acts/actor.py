"""The actor of an administrative act, and the kinds of acts. PURE.

Every function of `authority` that changes the authority takes an `Actor`. The command line, the API
and the dashboard each make their own; this module must never look for one itself.
"""

from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """The way by which an act came."""

    COMMAND_LINE = "command-line"
    API = "api"
    DASHBOARD = "dashboard"
    SERVER = "server"
    """The authority itself, such as the detection of abuse."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does an act: a name of up to 64 printable characters, and how the act came.

    `role` is the role of the caller and `request_id` the id of the request; both are None on the
    command line, which has neither.
    """

    name: str
    source: Source
    role: str | None = None
    request_id: str | None = None


class ActKind(StrEnum):
    """The kinds of acts. The part before the point is the kind of the subjects."""

    DEVICE_PROVISION = "device.provision"
    DEVICE_RE_ENROL = "device.re-enrol"
    DEVICE_SUSPEND = "device.suspend"
    DEVICE_REINSTATE = "device.reinstate"
    DEVICE_REVOKE = "device.revoke"
    DEVICE_RETIRE = "device.retire"
    DEVICE_ALLOW_RE_ENROLMENT = "device.allow-re-enrolment"
    DEVICE_FORBID_RE_ENROLMENT = "device.forbid-re-enrolment"
    DEVICE_FLAG = "device.flag"
    DEVICE_REVIEW_FLAGS = "device.review-flags"
    RENEWAL_ORDER_GIVE = "renewal-order.give"
    RENEWAL_ORDER_CANCEL = "renewal-order.cancel"
    ACCESS_KEY_CREATE = "access-key.create"
    ACCESS_KEY_ROTATE = "access-key.rotate"
    ACCESS_KEY_REVOKE = "access-key.revoke"
    KEY_TABLE_POPULATE = "key-table.populate"
    KEY_TABLE_ROTATE = "key-table.rotate"
    KEY_TABLE_END_OVERLAP = "key-table.end-overlap"
    CA_ROTATE = "ca.rotate"
    CA_PREPARE = "ca.prepare"
    CA_ACTIVATE = "ca.activate"
    CA_COMPROMISE = "ca.compromise"
    CA_ROLL_ROOT = "ca.roll-root"
    CA_PUBLISH_CRL = "ca.publish-crl"
    SECRET_ROTATE = "secret.rotate"  # noqa: S105  a name
    SECRET_FORGET_PREVIOUS = "secret.forget-previous"  # noqa: S105  a name
    HISTORY_PRUNE = "history.prune"
    HISTORY_COARSEN = "history.coarsen"
    AUTHORITY_CREATE = "authority.create"
    AUTHORITY_MIGRATE = "authority.migrate"
    AUTHORITY_RESTORE = "authority.restore"
    AUTHORITY_MOVE = "authority.move"
    AUTHORITY_UNDO_MOVE = "authority.undo-move"

    @property
    def subject_kind(self) -> str:
        """Return the kind of the subjects, such as `device`."""
        return self.value.partition(".")[0]
