"""Apply the rate limits to requests, and set the RateLimit header fields of responses.

`web.api.validate` calls these functions; `authority.rate_limits` counts. The header fields are
those of draft-ietf-httpapi-ratelimit-headers-10: lists of structured fields (RFC 9651). `q` (quota)
and `r` (remaining) are units, `w` (window) and `t` (time until more is left) are seconds.
"""

from collections.abc import Sequence
from functools import lru_cache

from starlette.types import Scope

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.rate_limits.limiter import Kind, Quota, RateLimits
from birthmark_sma.errors import RateLimitedError
from birthmark_sma.rates import Rate
from birthmark_sma.web.api import provision
from birthmark_sma.web.middleware.authentication import PROBES, route_name
from birthmark_sma.web.middleware.security_headers import ADDED

FIELDS = ("RateLimit", "RateLimit-Policy")

# The key in the scope for the outcome of `consume`: True, or the RateLimitedError.
_OUTCOME = "rate_limit_outcome"


def rate_limit_kind(scope: Scope) -> Kind | None:
    """Return the limit of a request other than a validation; None for the two probes.

    Probes are frequent, and come from addresses that other callers share.
    """
    route = route_name(scope)
    if route == provision.PATH and scope["method"] == "POST":
        return Kind.PROVISION
    return None if route in PROBES else Kind.ADMIN


def consume(scope: Scope, limits: RateLimits, kind: Kind, caller: Caller, cost: int = 1) -> None:
    """Take `cost` units from the caller's limit in this process, or raise RateLimitedError.

    A second call for the same request takes nothing and has the same outcome. This happens when a
    request fails on the fast path and is then answered through ASGI.
    """
    outcome = scope.get(_OUTCOME)
    if outcome is None:
        try:
            _tell(scope, limits.take(kind, caller, cost))
        except RateLimitedError as error:
            scope[_OUTCOME] = error
            _tell(scope, limits.quotas(kind, caller))
            raise
        scope[_OUTCOME] = True
    elif outcome is not True:
        raise outcome


def record_failed_auth(scope: Scope, limits: RateLimits) -> None:
    """Count a request with a wrong Authorization field. Without such a field, count nothing.

    Raises RateLimitedError if the address has reached its limit of wrong credentials.
    """
    client = scope["client"]
    if client is not None and any(name == b"authorization" for name, _ in scope["headers"]):
        limits.record_failed_auth(client[0])


def count_session_guess(scope: Scope, limits: RateLimits) -> None:
    """Count an unknown session cookie. Raises RateLimitedError as `record_failed_auth` does."""
    client = scope["client"]
    if client is not None:
        limits.record_failed_auth(client[0])


async def consume_shared(
    scope: Scope, limits: RateLimits, kind: Kind, caller: Caller, cost: int = 1
) -> None:
    """Take `cost` units from the shared store, after `consume` has taken them here.

    Raises RateLimitedError. For a validation it also reserves `cost` possible FAILs. The caller of
    this function gives them back with `RateLimits.release`.
    """
    quotas, refusal = await limits.confirm(kind, caller, cost)
    _tell(scope, quotas)
    if refusal is not None:
        scope[_OUTCOME] = refusal
        raise refusal


def tell(scope: Scope, limits: RateLimits, kind: Kind, caller: Caller) -> None:
    """Set the RateLimit fields of the response to the caller's present quotas."""
    _tell(scope, limits.quotas(kind, caller))


def _tell(scope: Scope, quotas: Sequence[Quota]) -> None:
    if quotas:
        left = ", ".join([f'"{name}";r={left};t={more_in}' for name, _, left, more_in in quotas])
        # `ResponseHeaders` and `web.transport.fast_path` add these fields to the response.
        scope[ADDED] = (
            (b"ratelimit", left.encode()),
            (b"ratelimit-policy", _policies(*[each[:2] for each in quotas])),
        )


@lru_cache
def _policies(*policies: tuple[str, Rate]) -> bytes:
    """Return the value of RateLimit-Policy. Most callers have the same one, so it is cached."""
    return ", ".join(
        f'"{name}";q={rate.amount};w={rate.seconds}' for name, rate in policies
    ).encode()
