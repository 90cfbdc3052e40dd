"""The authority of a server, for the commands: the administration API over HTTP.

`cli/opening.py` opens it. The actor of every act is the access key. A list is read page by page, up
to the limit of the command. Unknown members of a response are ignored, as a newer server has them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from birthmark_sma.authority.acts import search as act_search
from birthmark_sma.authority.acts.search import ActFilter
from birthmark_sma.authority.devices.revocation import DeviceCriteria
from birthmark_sma.authority.devices.states import StatusChange
from birthmark_sma.authority.representations.places import describe_expiry
from birthmark_sma.authority.validation.audit_search import AuditFilter, Cursor
from birthmark_sma.cli.administration.bulk import act_in_pieces
from birthmark_sma.cli.administration.interface import NewKey
from birthmark_sma.cli.administration.transport import ServerConnection
from birthmark_sma.errors import (
    BirthmarkError,
    ConfigurationError,
    UnknownAccessKeyError,
    UnknownDeviceError,
    UnknownValidationError,
)
from birthmark_sma.web.api.administration.calls import MOST_ITEMS, is_name
from birthmark_sma.web.api.administration.responses import (
    AccessKeysResponse,
    ActResponse,
    ActsResponse,
    DeviceActResponse,
    DeviceResponse,
    DevicesResponse,
    FlagsResponse,
    IssuedKeyResponse,
    IssuersResponse,
    KeyTablesResponse,
    PermissionResponse,
    RequestResponse,
    ReviewedFlagsResponse,
    RevokedKeyResponse,
    ValidationsResponse,
)

_Model = TypeVar("_Model", bound=BaseModel)

_API = "/api/v1"
_NO_LIMIT = 10**9


class RemoteAdministration:
    """`interface.Administration` on a server."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    def now(self) -> datetime:
        """Return the time of this machine's clock."""
        return datetime.now(UTC)

    # --- devices

    def list_devices(self, *, limit: int, after: str | None) -> DevicesResponse:
        """Return the first devices after a serial, sorted by serial."""
        return self._pages(DevicesResponse, "/devices", "devices", {}, limit, after)

    def list_expiring(
        self, before: datetime, *, limit: int, after: tuple[datetime, str] | None
    ) -> DevicesResponse:
        """Return the devices in use whose certificate ends before a time, sorted by the end."""
        place = None if after is None else describe_expiry(*after)
        query = {"expires_before": before}
        return self._pages(DevicesResponse, "/devices", "devices", query, limit, place)

    def find_device(self, name: str) -> DeviceResponse:
        """Return a device with its permission to re-enrol and its earlier certificates."""
        return self._get(DeviceResponse, f"/devices/{_device(name)}")

    def change_devices(
        self, wanted: Sequence[str] | DeviceCriteria, change: StatusChange, *, dry_run: bool = False
    ) -> DeviceActResponse:
        """Change the status of devices. If named devices prevent that, the result is not `done`."""
        change.check(self.now())
        return act_in_pieces(
            lambda body: self._post(DeviceActResponse, "/devices/bulk", body),
            wanted,
            change,
            dry_run=dry_run,
        )

    def allow_re_enrolment(self, name: str, period: timedelta) -> PermissionResponse:
        """Allow one re-enrolment of a device."""
        body = {"seconds": int(period.total_seconds())}
        return self._post(PermissionResponse, f"/devices/{_device(name)}/re-enrol", body)

    def forbid_re_enrolment(self, name: str) -> PermissionResponse:
        """Withdraw the permission to re-enrol a device, if there is one."""
        path = f"/devices/{_device(name)}/re-enrol"
        return self._post(PermissionResponse, path, {"cancel": True})

    def list_flags(self, *, shadow: bool, reviewed: bool, limit: int) -> FlagsResponse:
        """Return abuse flags, the latest day first."""
        query = {"shadow": shadow, "reviewed": reviewed}
        return self._pages(FlagsResponse, "/flags", "flags", query, limit)

    def review_flags(self, name: str, day: date | None) -> ReviewedFlagsResponse:
        """Mark the flags of a device as reviewed, or that of one day."""
        _device(name)
        body = {"device_serial": name, "day": day}
        return self._post(ReviewedFlagsResponse, "/flags/review", body)

    # --- access keys

    def list_keys(self, *, everything: bool) -> AccessKeysResponse:
        """Return the access keys in force, or all."""
        return self._pages(AccessKeysResponse, "/keys", "keys", {"all": everything})

    def create_key(self, new: NewKey) -> IssuedKeyResponse:
        """Create an access key. The API gets the certificates in PEM."""
        terms = new.terms
        sent = [each.name for each in fields(terms) if not each.name.startswith("certificate_")]
        body: dict[str, Any] = {name: getattr(terms, name) for name in sent}
        body["client_certificate"] = new.client_certificate
        body["client_issuer"] = new.client_issuer
        return self._post(IssuedKeyResponse, "/keys", body)

    def rotate_key(self, name: str, grace: timedelta) -> IssuedKeyResponse:
        """Give an access key a new secret."""
        body = {"grace_seconds": int(grace.total_seconds())}
        return self._post(IssuedKeyResponse, f"/keys/{_key(name)}/rotate", body)

    def revoke_key(self, name: str) -> RevokedKeyResponse:
        """Revoke an access key for ever."""
        return self._post(RevokedKeyResponse, f"/keys/{_key(name)}/revoke", {})

    # --- what happened

    def list_validations(
        self, wanted: AuditFilter, *, limit: int, before: Cursor | None
    ) -> ValidationsResponse:
        """Return rows of the audit log, the newest first. The device may be in any case."""
        query = asdict(wanted)
        query |= {"device": query.pop("device_serial"), "table": query.pop("table_id")}
        place = None if before is None else str(before)
        path = "/validations"
        found = self._pages(ValidationsResponse, path, "validations", query, limit, place)
        return found.model_copy(update={"looked_back_to": None})

    def find_validations(self, request_id: str) -> RequestResponse:
        """Return the validations of all requests with an id."""
        missing = UnknownValidationError(f"No validation has the request id {request_id}.")
        return self._get(RequestResponse, f"/validations/{_segment(request_id, missing)}")

    def list_acts(self, wanted: ActFilter, *, limit: int, before: int | None) -> ActsResponse:
        """Return acts before an id, the newest first."""
        query = asdict(wanted)
        query["kind"] = query.pop("subject_kind")
        place = None if before is None else str(before)
        return self._pages(ActsResponse, "/acts", "acts", query, limit, place)

    def find_act(self, act_id: int, *, subjects: int | None) -> ActResponse:
        """Return an act and up to `subjects` of its subjects, or all."""
        limit = _NO_LIMIT if subjects is None else subjects
        return self._pages(ActResponse, f"/acts/{act_id}", "listed", {}, limit)

    def export_acts(self, wanted: ActFilter, *, serials: bool) -> Iterator[dict[str, Any]]:
        """Yield acts, the newest first, each followed by its subjects if it has several."""
        before: int | None = None
        while True:
            page = self.list_acts(wanted, limit=MOST_ITEMS, before=before)
            for act in page.acts:
                is_named = serials or not act_search.names_devices(act.subject_kind)
                rows = [act.model_dump()]
                if act.subjects > 1:
                    rows += (
                        {"act_id": act.id, "subject": e.name, "before": e.before, "after": e.after}
                        for e in self.find_act(act.id, subjects=None).listed
                    )
                yield from rows if is_named else map(act_search.leave_out_serials, rows)
            if page.next_cursor is None or not page.acts:
                return
            before = page.acts[-1].id

    # --- what the authority has

    def list_tables(self, *, only_open: bool, limit: int, after: int) -> KeyTablesResponse:
        """Return key tables after an id, by id."""
        place = None if after < 0 else str(after)
        return self._pages(
            KeyTablesResponse, "/tables", "tables", {"open": only_open}, limit, place
        )

    def list_issuers(self) -> IssuersResponse:
        """Return all CAs."""
        return self._get(IssuersResponse, "/issuers")

    # --- requests

    def _get(
        self, model: type[_Model], path: str, query: Mapping[str, Any] | None = None
    ) -> _Model:
        texts = {name: _text(each) for name, each in (query or {}).items() if each is not None}
        return self._parse(model, path, self._connection.get(_API + path, texts))

    def _post(self, model: type[_Model], path: str, body: Mapping[str, Any]) -> _Model:
        given = {name: each for name, each in body.items() if each is not None}
        changes = not given.get("preview", False)
        return self._parse(model, path, self._connection.post(_API + path, given, changes=changes))

    def _pages(
        self,
        model: type[_Model],
        path: str,
        items: str,
        query: Mapping[str, Any],
        limit: int = _NO_LIMIT,
        cursor: str | None = None,
    ) -> _Model:
        """Return the first page of a list, with up to `limit` items of this and the next pages."""
        first: _Model | None = None
        found: list[Any] = []
        while True:
            number = min(limit - len(found), MOST_ITEMS)
            page = self._get(model, path, {**query, "limit": number, "cursor": cursor or None})
            first = first or page
            found += getattr(page, items)
            following: str | None = getattr(page, "next_cursor", None)
            if following is None or len(found) >= limit:
                listed = {items: found[:limit], "next_cursor": following}
                return first.model_copy(update=listed)
            if following == cursor:
                raise ConfigurationError(f"The pages of {self._connection.url}{_API}{path} repeat")
            cursor = following

    def _parse(self, model: type[_Model], path: str, value: Any) -> _Model:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            fault = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, fault["loc"])) or "the response"
            raise ConfigurationError(
                f"The response of {self._connection.url}{_API}{path} is not what this version of"
                f" sma expects ({where}: {fault['msg']}). Use the version that the server runs"
            ) from None


def _device(name: str) -> str:
    """Return the name of a device as a segment of a path. Raises UnknownDeviceError."""
    return _segment(name, UnknownDeviceError(f"No device {name} is registered."))


def _key(name: str) -> str:
    """Return the name of an access key as a segment of a path. Raises UnknownAccessKeyError."""
    detail = f"No key in force has the name or id {name}. To see them, type: sma keys list"
    return _segment(name, UnknownAccessKeyError(detail))


def _segment(name: str, missing: BirthmarkError) -> str:
    """Return a name as one segment of a path (RFC 3986): clients would resolve `.` and `..`.

    Raises `missing` for a text that names nothing on any server, such as one that is empty. A
    server answers it with 404, as it does if it does not know the path.
    """
    if not is_name(name):
        raise missing
    return name.replace(".", "%2E") if name in {".", ".."} else quote(name, safe="")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if isinstance(value, datetime) else str(value)
