"""The authority of a database, for the commands: the functions of `authority`, with JSON objects.

`cli/opening.py` opens it. The actor of every act is the user of the command line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date, datetime, timedelta
from typing import Any

from birthmark_sma.authority.access import keys as access_keys
from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.acts import search as act_search
from birthmark_sma.authority.acts.search import ActFilter
from birthmark_sma.authority.background import abuse_detection
from birthmark_sma.authority.devices import (
    re_enrolments,
    revocation,
)
from birthmark_sma.authority.devices.revocation import DeviceCriteria
from birthmark_sma.authority.devices.search import DeviceFilter
from birthmark_sma.authority.devices.states import StatusChange
from birthmark_sma.authority.representations import pages
from birthmark_sma.authority.representations.access_keys import (
    access_key_as_json,
    issued_key_as_json,
    revoked_key_as_json,
)
from birthmark_sma.authority.representations.devices import (
    act_as_json,
    permission_as_json,
)
from birthmark_sma.authority.representations.validations import page_as_json, request_as_json
from birthmark_sma.authority.validation import audit_search, validation_details
from birthmark_sma.authority.validation.audit_search import AuditFilter, Cursor
from birthmark_sma.cli.actor import find_actor
from birthmark_sma.cli.administration.interface import NewKey
from birthmark_sma.storage.engine import Database
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


class LocalAdministration:
    """`interface.Administration` on a database that is open."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> datetime:
        """Return the time of the database's clock."""
        return self._database.clock.now()

    # --- devices

    def list_devices(self, *, limit: int, after: str | None) -> DevicesResponse:
        """Return the first devices after a serial, sorted by serial."""
        with self._database.read() as connection:
            page = pages.devices_page(connection, DeviceFilter(), limit=limit, after=after)
        return DevicesResponse.model_validate(page)

    def list_expiring(
        self, before: datetime, *, limit: int, after: tuple[datetime, str] | None
    ) -> DevicesResponse:
        """Return the devices in use whose certificate ends before a time, sorted by the end."""
        with self._database.read() as connection:
            page = pages.expiring_page(connection, before, limit=limit, after=after)
        return DevicesResponse.model_validate(page)

    def find_device(self, name: str) -> DeviceResponse:
        """Return a device with its permission to re-enrol and its earlier certificates."""
        with self._database.read() as connection:
            return DeviceResponse.model_validate(pages.read_device(connection, name))

    def change_devices(
        self, wanted: Sequence[str] | DeviceCriteria, change: StatusChange, *, dry_run: bool = False
    ) -> DeviceActResponse:
        """Change the status of devices. If named devices prevent that, the result is not `done`."""
        result = revocation.change_devices(self._database, wanted, change, dry_run=dry_run)
        done = not dry_run and not result.is_prevented
        return DeviceActResponse.model_validate(act_as_json(result, change, done=done))

    def allow_re_enrolment(self, name: str, period: timedelta) -> PermissionResponse:
        """Allow one re-enrolment of a device."""
        permission = re_enrolments.allow(self._database, name, period, find_actor())
        return PermissionResponse.model_validate(permission_as_json(permission))

    def forbid_re_enrolment(self, name: str) -> PermissionResponse:
        """Withdraw the permission to re-enrol a device, if there is one."""
        serial, _ = re_enrolments.cancel(self._database, name, find_actor())
        return PermissionResponse(device_serial=serial, allowed_until=None)

    def list_flags(self, *, shadow: bool, reviewed: bool, limit: int) -> FlagsResponse:
        """Return abuse flags, the latest day first."""
        with self._database.read() as connection:
            page = pages.flags_page(connection, shadow=shadow, reviewed=reviewed, limit=limit)
        return FlagsResponse.model_validate(page)

    def review_flags(self, name: str, day: date | None) -> ReviewedFlagsResponse:
        """Mark the flags of a device as reviewed, or that of one day."""
        actor = find_actor()
        serial, number = self._database.transact(
            lambda transaction: abuse_detection.set_reviewed(transaction, name, actor, day)
        )
        return ReviewedFlagsResponse(device_serial=serial, reviewed=number)

    # --- access keys

    def list_keys(self, *, everything: bool) -> AccessKeysResponse:
        """Return the access keys in force, or all."""
        now = self.now()
        with self._database.read() as connection:
            found = access_key_store.all_keys(connection)
        shown = [access_key_as_json(each, now) for each in found if everything or each.is_good(now)]
        return AccessKeysResponse.model_validate({"keys": shown, "next_cursor": None})

    def create_key(self, new: NewKey) -> IssuedKeyResponse:
        """Create an access key."""
        issued = access_keys.create_key(self._database, new.terms, find_actor())
        return IssuedKeyResponse.model_validate(issued_key_as_json(issued, self.now()))

    def rotate_key(self, name: str, grace: timedelta) -> IssuedKeyResponse:
        """Give an access key a new secret."""
        issued = access_keys.rotate_key(self._database, name, grace, find_actor())
        return IssuedKeyResponse.model_validate(issued_key_as_json(issued, self.now()))

    def revoke_key(self, name: str) -> RevokedKeyResponse:
        """Revoke an access key for ever."""
        revoked = access_keys.revoke_key(self._database, name, find_actor())
        return RevokedKeyResponse.model_validate(revoked_key_as_json(revoked))

    # --- what happened

    def list_validations(
        self, wanted: AuditFilter, *, limit: int, before: Cursor | None
    ) -> ValidationsResponse:
        """Return rows of the audit log, the newest first. The device may be in any case."""
        if wanted.device_serial is not None:
            with self._database.read() as connection:
                serial = revocation.find_serial(connection, wanted.device_serial)
            wanted = replace(wanted, device_serial=serial)
        page = audit_search.search_whole(self._database, wanted, limit=limit, before=before)
        return ValidationsResponse.model_validate(page_as_json(page))

    def find_validations(self, request_id: str) -> RequestResponse:
        """Return the validations of all requests with an id."""
        found = validation_details.find_request(self._database, request_id)
        with self._database.read() as connection:
            names = validation_details.name_callers(connection, found)
        return RequestResponse.model_validate(request_as_json(request_id, found, names))

    def list_acts(self, wanted: ActFilter, *, limit: int, before: int | None) -> ActsResponse:
        """Return acts before an id, the newest first."""
        with self._database.read() as connection:
            found = act_search.search(connection, wanted, limit=limit + 1, before=before)
        return ActsResponse.model_validate(
            {
                "acts": [asdict(each) for each in found[:limit]],
                "next_cursor": str(found[limit - 1].id) if len(found) > limit else None,
            }
        )

    def find_act(self, act_id: int, *, subjects: int | None) -> ActResponse:
        """Return an act and up to `subjects` of its subjects, or all."""
        with self._database.read() as connection:
            act = act_search.find(connection, act_id)
            limit = act.subjects if subjects is None else subjects
            found = act_search.list_subjects(connection, act_id, limit=limit + 1)
        return ActResponse.model_validate(
            asdict(act)
            | {
                "listed": [asdict(each) for each in found[:limit]],
                "next_cursor": found[limit - 1].name if len(found) > limit else None,
            }
        )

    def export_acts(self, wanted: ActFilter, *, serials: bool) -> Iterator[dict[str, Any]]:
        """Yield acts, the newest first, each followed by its subjects if it has several."""
        return act_search.export(self._database, wanted, serials=serials)

    # --- what the authority has

    def list_tables(self, *, only_open: bool, limit: int, after: int) -> KeyTablesResponse:
        """Return key tables after an id, by id."""
        with self._database.read() as connection:
            page = pages.tables_page(connection, only_open=only_open, limit=limit, after=after)
        return KeyTablesResponse.model_validate(page)

    def list_issuers(self) -> IssuersResponse:
        """Return all CAs."""
        with self._database.read() as connection:
            return IssuersResponse.model_validate(pages.list_issuers(connection, self.now()))
