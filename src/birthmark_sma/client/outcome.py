"""What came of asking the authority about a camera token: one of three, and none is a boolean.

`Pass` and `Fail` are the authority's word. `Indeterminate` says that there is no such word, and
why: it is no verdict on the picture, and whoever treats it as `Fail` rejects genuine pictures
whenever a network fails. Tell them apart with `match` or `isinstance`.
"""

from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import NoReturn, TypeAlias


class _ThreeValued:
    """Neither true nor false, and equal to no text: either would make one of three vanish."""

    __slots__ = ()

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{self} is one of three outcomes and no boolean: ask isinstance(outcome, Pass),"
            " isinstance(outcome, Fail) and isinstance(outcome, Indeterminate)."
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str | bool):
            raise TypeError(f"{self} is compared with {other!r}: ask isinstance(outcome, Pass).")
        return type(self) is type(other) and _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash((type(self), _values(self)))


def _values(outcome: object) -> tuple[object, ...]:
    return tuple(getattr(outcome, each.name) for each in fields(outcome))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class Pass(_ThreeValued):
    """A registered, active device made the camera token.

    The device is named as far as the authority discloses it to this caller.
    """

    manufacturer_id: str
    validated_at: datetime
    device_family: str | None = None
    device_serial: str | None = None

    def __str__(self) -> str:
        return "PASS"


@dataclass(frozen=True, slots=True, eq=False)
class Fail(_ThreeValued):
    """No registered, active device made the camera token.

    `error` is what the authority tells beside it, which is nearly always nothing;
    `manufacturer_id` and `validated_at` are None where there is an error.
    """

    manufacturer_id: str | None = None
    validated_at: datetime | None = None
    error: str | None = None

    def __str__(self) -> str:
        return "FAIL"


class Cause(StrEnum):
    """Why there is no verdict."""

    UNREACHABLE = "unreachable"
    """No connection came about, or its peer closed it before there was an answer."""
    TIMED_OUT = "timed_out"
    """The authority did not answer in time, or the time was used up waiting to ask."""
    UNTRUSTED = "untrusted"
    """The TLS certificate is not trusted; `detail` says why: unknown CA, other name, expired."""
    UNAVAILABLE = "unavailable"
    """The authority said that it cannot answer now, or failed (5xx)."""
    RATE_LIMITED = "rate_limited"
    """This caller has asked for more than it may in this time (429)."""
    CIRCUIT_OPEN = "circuit_open"
    """The last requests failed, so the authority is left in peace for a moment."""
    OVERLOADED = "overloaded"
    """More calls wait in this process than the client takes; nothing was sent."""
    NOT_ALLOWED = "not_allowed"
    """The access key or client certificate is missing, wrong, or good for something else."""
    PROXY_REFUSED = "proxy_refused"
    """The proxy on the way does not let this client through (407, or 403 at CONNECT)."""
    ALREADY_SUBMITTED = "already_submitted"
    """This caller had the token validated before, and is not told again: go by that answer."""
    REFUSED = "refused"
    """The authority found fault with the request (another 4xx). Is this its address?"""
    REDIRECTED = "redirected"
    """The answer points elsewhere (3xx), which is not followed."""
    NOT_UNDERSTOOD = "not_understood"
    """What came back is not what the contract says."""

    @property
    def passes(self) -> bool:
        """Whether the same question may well be answered later, with nothing changed here."""
        return self in _PASSING


_PASSING = frozenset(
    {
        Cause.UNREACHABLE,
        Cause.TIMED_OUT,
        Cause.UNAVAILABLE,
        Cause.RATE_LIMITED,
        Cause.CIRCUIT_OPEN,
        Cause.OVERLOADED,
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Indeterminate(_ThreeValued):
    """There is no verdict. Never a FAIL: keep the bundle, and ask again where `cause.passes`.

    `detail` is a sentence for a person; `attempts` how often the authority was asked; `retry_after`
    in how many seconds it may be asked again, where that is known; `request_id` what its operator
    finds the last request by.
    """

    cause: Cause
    detail: str
    attempts: int = 0
    retry_after: float | None = None
    request_id: str | None = None

    def __str__(self) -> str:
        return "INDETERMINATE"


Outcome: TypeAlias = Pass | Fail | Indeterminate
