"""Define the three outcomes of a validation: `Pass`, `Fail` and `Indeterminate`. None is a boolean.

`Pass` and `Fail` are verdicts of the authority. `Indeterminate` means that there is no verdict, and
says why. It says nothing about the picture: code that treats it as `Fail` rejects genuine pictures
whenever a network fails. Distinguish the three with `match` or `isinstance`.
"""

from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import NoReturn, TypeAlias


class _ThreeValued:
    """Base of the outcomes. Using one as a boolean, or comparing it with a string, is a TypeError.

    Both uses would merge two of the three outcomes into one.
    """

    __slots__ = ()

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{self} is one of three outcomes and cannot be used as a boolean. Use"
            " isinstance(outcome, Pass), isinstance(outcome, Fail) and isinstance(outcome,"
            " Indeterminate)."
        )

    def __eq__(self, other: object) -> bool:
        # `outcome == "PASS"` would always be False, so a genuine picture would look like a FAIL.
        if isinstance(other, str | bool):
            raise TypeError(
                f"{self} cannot be compared with {other!r}. Use isinstance(outcome, Pass)."
            )
        return type(self) is type(other) and _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash((type(self), _values(self)))


def _values(outcome: object) -> tuple[object, ...]:
    return tuple(getattr(outcome, each.name) for each in fields(outcome))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, eq=False)
class Pass(_ThreeValued):
    """A registered, active device made the camera token.

    `device_family` and `device_serial` are None unless the authority discloses them to this caller.
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

    `error` is the authority's explanation, which is nearly always None. `manufacturer_id` and
    `validated_at` are None if there is an error.
    """

    manufacturer_id: str | None = None
    validated_at: datetime | None = None
    error: str | None = None

    def __str__(self) -> str:
        return "FAIL"


class Cause(StrEnum):
    """The reason why there is no verdict."""

    UNREACHABLE = "unreachable"
    """No connection could be opened, or the peer closed it before a response."""
    TIMED_OUT = "timed_out"
    """The authority did not answer in time, or the deadline passed before the request was sent."""
    UNTRUSTED = "untrusted"
    """The TLS certificate is not trusted. `detail` says why: unknown CA, other name, expired."""
    UNAVAILABLE = "unavailable"
    """The authority answered that it cannot answer now, or it failed (5xx)."""
    RATE_LIMITED = "rate_limited"
    """This caller exceeded its rate limit (429)."""
    CIRCUIT_OPEN = "circuit_open"
    """The circuit breaker is open after several failures, so nothing is sent for a while."""
    OVERLOADED = "overloaded"
    """More calls wait in this process than the client accepts. Nothing was sent."""
    NOT_ALLOWED = "not_allowed"
    """The access key or client certificate is missing, wrong, or has other permissions."""
    PROXY_REFUSED = "proxy_refused"
    """The proxy does not let this client through (407, or 403 for CONNECT)."""
    ALREADY_SUBMITTED = "already_submitted"
    """This caller already had the token validated, and gets no second answer. Use the first one."""
    REFUSED = "refused"
    """The authority refused the request (another 4xx). Check the URL."""
    REDIRECTED = "redirected"
    """The response is a redirect (3xx), which the client does not follow."""
    NOT_UNDERSTOOD = "not_understood"
    """The response does not follow the contract."""

    @property
    def passes(self) -> bool:
        """Return True if the same request may succeed later without any change on this side."""
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
    """There is no verdict. Never treat it as FAIL: keep the bundle, and retry if `cause.passes`.

    `detail` is a sentence for a person. `attempts` is the number of requests that were sent.
    `retry_after` is the number of seconds after which a retry is allowed, if known. `request_id`
    identifies the last request in the logs of the authority's operator.
    """

    cause: Cause
    detail: str
    attempts: int = 0
    retry_after: float | None = None
    request_id: str | None = None

    def __str__(self) -> str:
        return "INDETERMINATE"


Outcome: TypeAlias = Pass | Fail | Indeterminate
