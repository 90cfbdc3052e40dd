"""What the commands ask of an authority: the Protocol of `local` and `remote`.

The objects are those of the administration API, so `--json` prints the same for both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Protocol

from birthmark_sma.authority.access.keys import KeyTerms
from birthmark_sma.authority.acts.search import ActFilter
from birthmark_sma.authority.devices.revocation import DeviceCriteria
from birthmark_sma.authority.devices.states import StatusChange
from birthmark_sma.authority.validation.audit_search import AuditFilter, Cursor
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


@dataclass(frozen=True, slots=True)
class NewKey:
    """The terms of a new access key, and the certificates among them as PEM, for the API."""

    terms: KeyTerms
    client_certificate: str | None = None
    client_issuer: str | None = None


class Administration(Protocol):
    """An authority, as a command sees it. A `limit` may be larger than a page of the API.

    What is wrong raises the errors of `authority`, or RefusedByServerError with the same message.
    """

    def now(self) -> datetime:
        """Return the time: the database's, or without one that of this machine."""

    def list_devices(self, *, limit: int, after: str | None) -> DevicesResponse:
        """Return the first devices after a serial, sorted by serial."""

    def list_expiring(
        self, before: datetime, *, limit: int, after: tuple[datetime, str] | None
    ) -> DevicesResponse:
        """Return the devices in use whose certificate ends before a time, sorted by the end."""

    def find_device(self, name: str) -> DeviceResponse:
        """Return the device with this serial, or with a certificate of this serial number."""

    def change_devices(
        self, wanted: Sequence[str] | DeviceCriteria, change: StatusChange, *, dry_run: bool = False
    ) -> DeviceActResponse:
        """Change the status of devices. If named devices prevent that, the result is not `done`."""

    def allow_re_enrolment(self, name: str, period: timedelta) -> PermissionResponse:
        """Allow one re-enrolment of a device."""

    def forbid_re_enrolment(self, name: str) -> PermissionResponse:
        """Withdraw the permission to re-enrol a device, if there is one."""

    def list_flags(self, *, shadow: bool, reviewed: bool, limit: int) -> FlagsResponse:
        """Return abuse flags, the latest day first."""

    def review_flags(self, name: str, day: date | None) -> ReviewedFlagsResponse:
        """Mark the flags of a device as reviewed, or that of one day."""

    def list_keys(self, *, everything: bool) -> AccessKeysResponse:
        """Return the access keys in force, or all."""

    def create_key(self, new: NewKey) -> IssuedKeyResponse:
        """Create an access key."""

    def rotate_key(self, name: str, grace: timedelta) -> IssuedKeyResponse:
        """Give an access key a new secret."""

    def revoke_key(self, name: str) -> RevokedKeyResponse:
        """Revoke an access key for ever."""

    def list_validations(
        self, wanted: AuditFilter, *, limit: int, before: Cursor | None
    ) -> ValidationsResponse:
        """Return rows of the audit log, the newest first. The device may be in any case."""

    def find_validations(self, request_id: str) -> RequestResponse:
        """Return the validations of all requests with an id."""

    def list_tables(self, *, only_open: bool, limit: int, after: int) -> KeyTablesResponse:
        """Return key tables after an id, by id."""

    def list_issuers(self) -> IssuersResponse:
        """Return all CAs."""

    def list_acts(self, wanted: ActFilter, *, limit: int, before: int | None) -> ActsResponse:
        """Return acts before an id, the newest first."""

    def find_act(self, act_id: int, *, subjects: int | None) -> ActResponse:
        """Return an act and up to `subjects` of its subjects, or all."""

    def export_acts(self, wanted: ActFilter, *, serials: bool) -> Iterator[dict[str, Any]]:
        """Yield acts, the newest first, each followed by its subjects if it has several.

        Without `serials` no device is named.
        """
