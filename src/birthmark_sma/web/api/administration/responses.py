"""The JSON models of responses of the administration API, for the OpenAPI document alone.

The responses themselves are made by `authority.representations`; a test compares both.
"""

from datetime import date, datetime
from typing import Annotated, Any

from pydantic import Field

from birthmark_sma.web.api.models.wire import WireResponse

_Cursor = Annotated[
    str | None, Field(description="For the next page, as `cursor`; null at the end")
]


class DeviceItem(WireResponse):
    """A device, as `sma devices list --json` has it."""

    device_serial: str
    device_family: str
    app_version: str | None
    status: str
    status_reason: str | None
    status_actor: str | None
    status_changed_at: datetime | None
    table_assignments: list[int]
    table_epochs: list[int]
    provisioning_id: str
    provisioned_at: datetime
    certificate_serial: str
    certificate_expires_at: datetime | None
    certificate_renewed_at: datetime | None
    public_key_sha256: Annotated[str, Field(repr=False)]
    device_certificate: str


class EarlierCertificate(WireResponse):
    """A certificate that its device does not use any more."""

    certificate_serial: str
    not_before: datetime | None
    certificate_expires_at: datetime | None
    replaced_at: datetime
    replaced_by: str
    revoked_at: datetime | None
    revocation_reason: str | None


class DeviceResponse(DeviceItem):
    """A device, as `sma devices show --json` has it."""

    re_enrolment_allowed_until: datetime | None
    earlier_certificates: list[EarlierCertificate]


class ExpiringDevice(WireResponse):
    """A device in a list by the end of its certificate."""

    device_serial: str
    device_family: str
    status: str
    certificate_serial: str
    certificate_expires_at: datetime


class DevicesResponse(WireResponse):
    """A page of devices. With `expires_before` it has fewer members of each, and no `total`."""

    devices: list[DeviceItem | ExpiringDevice]
    total: Annotated[int | None, Field(description="The number of all registered devices")] = None
    next_cursor: _Cursor


class CountOfDevices(WireResponse):
    """The number of devices of a family that had a status before the act."""

    device_family: str
    status: str
    devices: int


class DeviceActResponse(WireResponse):
    """What an act on devices did, as `sma devices suspend --json` has it."""

    act: str
    done: bool
    reason: str | None
    compromised_since: datetime | None
    actor: str
    changed: Annotated[list[str], Field(description="Of an act by criteria: up to 1,000 serials")]
    unchanged: Annotated[list[str], Field(description="They had the status before")]
    refused: Annotated[list[str], Field(description="Their status does not allow the act")]
    refused_statuses: Annotated[list[str], Field(description="In the order of `refused`")]
    unknown: list[str]
    changed_devices: Annotated[int, Field(description="The number of all that changed")]
    unchanged_devices: int
    refused_devices: int
    counts: list[CountOfDevices]


class PermissionResponse(WireResponse):
    """A permission to re-enrol. With `cancel` it has the first two members."""

    device_serial: str
    allowed_until: datetime | None
    actor: str | None = None
    opened_at: datetime | None = None


class AccessKeyResponse(WireResponse):
    """An access key, as `sma keys list --json` has it. Its secret is not stored."""

    name: str
    id: str
    scope: str
    state: str
    device_family: str | None
    uses: int
    uses_allowed: int | None
    may_re_enrol: bool
    disclosure: str | None
    rate_limit: str | None
    certificate_sha256: str | None
    certificate_issuer: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class IssuedKeyResponse(AccessKeyResponse):
    """An access key with its new secret, which is shown this once."""

    key: Annotated[
        str | None, Field(repr=False, description="Null for a key of a client certificate")
    ]


class RevokedKeyResponse(WireResponse):
    """A key that was revoked."""

    name: str
    id: str
    state: str


class AccessKeysResponse(WireResponse):
    """A page of access keys, the oldest first."""

    keys: list[AccessKeyResponse]
    next_cursor: _Cursor


class FlagItem(WireResponse):
    """A device that made far more pictures on a day than usual."""

    device_serial: str
    day: date
    mode: str
    pictures: int
    usual: float
    days_compared: int
    threshold: int
    flagged_at: datetime
    reviewed_at: datetime | None
    device_family: str | None
    status: str | None


class FlagsResponse(WireResponse):
    """A page of flags, as `sma devices flagged --json` has it."""

    total: Annotated[int, Field(description="From this page on")]
    flags: list[FlagItem]
    next_cursor: _Cursor


class ReviewedFlagsResponse(WireResponse):
    """How many flags were marked as reviewed."""

    device_serial: str
    reviewed: int


class ValidationItem(WireResponse):
    """A row of the audit log, as `sma validations list --json` has it."""

    id: int
    validated_at: datetime
    validation_result: str
    reason: str
    repeat: str | None
    device_serial: str | None
    table_id: int
    key_index: int
    caller: str | None
    request_ip: str | None
    request_id: str | None
    batch_position: int | None
    token_digest: str | None
    waited_us: int | None
    is_coarse: Annotated[
        bool,
        Field(description="True if `validated_at` is the hour alone, and the address was dropped"),
    ]


class ValidationsResponse(WireResponse):
    """A page of the audit log, the newest rows first."""

    validations: list[ValidationItem]
    next_cursor: _Cursor
    looked_back_to: Annotated[
        datetime | None,
        Field(description="Set if the search took too long: `next_cursor` continues it"),
    ]


class Resubmission(WireResponse):
    """Further submissions of a token by one caller."""

    caller: str
    times: int
    last_seen_at: datetime


class ValidationDetails(ValidationItem):
    """A row of the audit log, explained."""

    meaning: str
    advice: str
    repeat_meaning: str | None
    repeat_advice: str | None
    first_seen_at: datetime | None
    first_caller: str | None
    seen_again: list[Resubmission]


class RequestResponse(WireResponse):
    """The validations of all requests with an id, as `sma validations show --json` has them."""

    request_id: str
    validations: list[ValidationDetails]
    callers: Annotated[
        dict[str, str], Field(description="The names of the access keys: `key:` and the id, name")
    ]


class KeyTableItem(WireResponse):
    """The state of a key table, as `sma tables list --json` has it."""

    table_id: int
    epoch: int
    rotated_at: datetime | None
    accepted_until: Annotated[
        datetime | None, Field(description="The end of the overlap with the earlier key")
    ]


class KeyTableResponse(KeyTableItem):
    """A key table with its use."""

    devices: Annotated[int, Field(description="The anonymity set of the tokens of this table")]
    passes: int
    fails: int


class KeyTablesResponse(WireResponse):
    """A page of key tables."""

    total: int
    open_overlaps: int
    tables: list[KeyTableItem]
    next_cursor: _Cursor


class IssuerItem(WireResponse):
    """A CA with its certificate, as `sma ca list --json` has it."""

    name: str
    role: str
    state: str
    state_changed_at: datetime | None
    signed_by: str
    devices: int
    subject: str
    issuer: str
    serial_number: str
    not_before: datetime
    not_after: datetime
    sha256_fingerprint: str
    certificate: Annotated[str, Field(description="PEM")]


class IssuersResponse(WireResponse):
    """All CAs."""

    issuers: list[IssuerItem]
    next_cursor: _Cursor


class ActItem(WireResponse):
    """An administrative act, as `sma acts list --json` has it."""

    id: int
    acted_at: datetime
    act: str
    actor: str
    role: str | None
    source: str
    request_id: str | None
    subject_kind: str
    subject: str | None
    subjects: int
    reason: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    more: dict[str, Any]


class ActSubject(WireResponse):
    """A subject of an act that has several."""

    name: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class ActsResponse(WireResponse):
    """A page of acts, the newest first."""

    acts: list[ActItem]
    next_cursor: _Cursor


class ActResponse(ActItem):
    """An act with a page of its subjects, if it has several."""

    listed: list[ActSubject]
    next_cursor: _Cursor
