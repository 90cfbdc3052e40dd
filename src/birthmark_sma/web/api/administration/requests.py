"""The JSON models of requests to the administration API."""

from datetime import UTC, date, datetime
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from birthmark_sma.authority.access.keys import MAX_NAME
from birthmark_sma.authority.access.store import KeyScope
from birthmark_sma.authority.provisioning.issuance import MAX_DESCRIPTION
from birthmark_sma.pki.crl import HOLD, REASONS
from birthmark_sma.pki.names import MAX_SERIAL_CHARACTERS
from birthmark_sma.web.api.models.wire import Pem, WireInteger, WireRequest

MOST_SERIALS = 10_000
_DAY_SECONDS = 86_400
_LONGEST_SECONDS = 3_650 * _DAY_SECONDS


def _moment(value: object) -> datetime:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise ValueError("give a time with its zone, such as 2026-11-30T09:00:00Z")


def _day(value: object) -> date:
    try:
        return date.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError("give a day, such as 2026-11-30") from None


def _printable(value: object) -> object:
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("it has printable characters only")
    return value


def is_serial(text: str) -> bool:
    """Return whether a device can have this serial."""
    return 1 <= len(text) <= MAX_SERIAL_CHARACTERS and text.isprintable()


Moment = Annotated[datetime, BeforeValidator(_moment)]
Day = Annotated[date, BeforeValidator(_day)]
Serial = Annotated[
    str, Field(min_length=1, max_length=MAX_SERIAL_CHARACTERS), BeforeValidator(_printable)
]
Description = Annotated[
    str, Field(min_length=1, max_length=MAX_DESCRIPTION), BeforeValidator(_printable)
]
_Reason = Literal[
    "unspecified",
    "key_compromise",
    "affiliation_changed",
    "superseded",
    "cessation_of_operation",
    "privilege_withdrawn",
]
_Since = Annotated[
    Moment | None,
    Field(
        description="With `key_compromise`: the time since when the key may be in other hands."
        " Pictures that an aggregation server received before stay valid"
    ),
]


class SuspendRequest(WireRequest):
    """Suspend a device."""

    reason: Annotated[Literal["certificate_hold"], Field(description="The only reason")] = (
        "certificate_hold"
    )


class ReinstateRequest(WireRequest):
    """End a suspension. It has no members."""


class RevokeRequest(WireRequest):
    """Revoke a device for ever."""

    reason: Annotated[_Reason, Field(description="RFC 5280, section 5.3.1")] = "unspecified"
    compromised_since: _Since = None


class RetireRequest(WireRequest):
    """Retire a device that is out of use."""

    reason: Annotated[Literal["cessation_of_operation"], Field(description="The only reason")] = (
        "cessation_of_operation"
    )


class ReEnrolRequest(WireRequest):
    """Allow a device to be provisioned once more, or withdraw that."""

    seconds: Annotated[
        int, Field(ge=1, le=90 * _DAY_SECONDS, description="How long it is allowed: 7 days")
    ] = 7 * _DAY_SECONDS
    cancel: Annotated[bool, Field(description="Withdraw the permission instead")] = False


class DeviceCriteriaRequest(WireRequest):
    """The devices that meet every criterion that is given. At least one is needed."""

    device_family: Description | None = None
    app_version: Description | None = None
    provisioned_after: Annotated[Moment | None, Field(description="At this time or later")] = None
    provisioned_before: Annotated[Moment | None, Field(description="Before this time")] = None
    table: Annotated[WireInteger | None, Field(description="A key table of the devices")] = None

    @model_validator(mode="after")
    def _one_at_least(self) -> Self:
        if all(value is None for value in self.model_dump().values()):
            raise ValueError("give at least one criterion")
        return self


class BulkRequest(WireRequest):
    """One act on many devices, done as a whole or not at all."""

    act: Literal["suspend", "reinstate", "revoke", "retire"]
    device_serials: Annotated[
        list[Serial] | None,
        Field(min_length=1, max_length=MOST_SERIALS, description="Either these or `criteria`"),
    ] = None
    criteria: DeviceCriteriaRequest | None = None
    reason: Annotated[
        Literal[_Reason, "certificate_hold"] | None,
        Field(description="As for an act on one device"),
    ] = None
    compromised_since: _Since = None
    preview: Annotated[
        bool, Field(description="Tell which devices would change, and change nothing")
    ] = False

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.device_serials is None) == (self.criteria is None):
            raise ValueError("give exactly one of device_serials and criteria")
        reasons = {
            "suspend": {HOLD},
            "reinstate": set(),
            "revoke": set(REASONS),
            "retire": {"cessation_of_operation"},
        }[self.act]
        if self.reason is not None and self.reason not in reasons:
            raise ValueError(f"{self.act} does not have this reason")
        return self


class CreateKeyRequest(WireRequest):
    """A new access key."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=MAX_NAME, description="The holder, such as newsroom-1"),
        BeforeValidator(_printable),
    ]
    scope: Literal[tuple(each.value for each in KeyScope)]  # type: ignore[valid-type]
    expires_at: Annotated[Moment | None, Field(description="The end of its validity")] = None
    device_family: Annotated[
        Description | None, Field(description="With provision: the only family it may provision")
    ] = None
    uses_allowed: Annotated[
        int | None,
        Field(ge=1, le=2**31 - 1, description="With provision: how many devices it may provision"),
    ] = None
    may_re_enrol: Annotated[
        bool, Field(description="With provision: also re-enrol devices that exist")
    ] = False
    disclosure: Annotated[
        Literal["serial", "family", "none"] | None,
        Field(
            description="With validate: what a PASS tells about the device. With read: `family` and"
            " `none` leave serials out of exports, and close the lists that name devices"
        ),
    ] = None
    rate_limit: Annotated[
        str | None,
        Field(max_length=64, description='Such as "100/second", or "none"'),
        BeforeValidator(_printable),
    ] = None
    client_certificate: Annotated[
        Pem | None, Field(description="A client certificate that callers show in place of the key")
    ] = None
    client_issuer: Annotated[
        Pem | None, Field(description="A CA, any of whose client certificates stands for the key")
    ] = None

    @model_validator(mode="after")
    def _one_certificate(self) -> Self:
        if self.client_certificate is not None and self.client_issuer is not None:
            raise ValueError("give client_certificate or client_issuer, but not both")
        return self


class RotateKeyRequest(WireRequest):
    """A new secret for a key."""

    grace_seconds: Annotated[
        int,
        Field(ge=0, le=_LONGEST_SECONDS, description="How long the old secret stays valid: a day"),
    ] = _DAY_SECONDS


class RevokeKeyRequest(WireRequest):
    """Revoke a key for ever. It has no members."""


class ReviewFlagsRequest(WireRequest):
    """Mark the flags of a device as reviewed."""

    device_serial: Serial
    day: Annotated[Day | None, Field(description="Only the flag of this day (UTC)")] = None


REQUESTS = (
    SuspendRequest,
    ReinstateRequest,
    RevokeRequest,
    RetireRequest,
    ReEnrolRequest,
    BulkRequest,
    CreateKeyRequest,
    RotateKeyRequest,
    RevokeKeyRequest,
    ReviewFlagsRequest,
)
"""All models, for the OpenAPI document."""
