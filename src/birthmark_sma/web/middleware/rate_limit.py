"""Rate limits where requests come in, and the header fields that tell callers what they have left.

The fields are those of draft-ietf-httpapi-ratelimit-headers-10: lists of structured fields (RFC
9651), of which `q` and `r` are units, `w` and `t` seconds.
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

_OUTCOME = "rate_limit_outcome"


def rate_limit_kind(scope: Scope) -> Kind | None:
    """Return what limits a request that is not for validation; None for the two that nothing does.

    Probes ask often, and from addresses that they share with callers.
    """
    route = route_name(scope)
    if route == provision.PATH and scope["method"] == "POST":
        return Kind.PROVISION
    return None if route in PROBES else Kind.ADMIN


def consume(scope: Scope, limits: RateLimits, kind: Kind, caller: Caller, cost: int = 1) -> None:
    """Let a request pass, or raise RateLimitedError; once, however often it is asked.

    A request that finds an error on its short way is looked at again on the ordinary one.
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
    """Count a request whose credentials are wrong; one that shows none is no guess.

    Raises RateLimitedError where its address has guessed enough.
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
    """Ask the other processes as well. Raises RateLimitedError."""
    quotas, refusal = await limits.confirm(kind, caller, cost)
    _tell(scope, quotas)
    if refusal is not None:
        scope[_OUTCOME] = refusal
        raise refusal


def tell(scope: Scope, limits: RateLimits, kind: Kind, caller: Caller) -> None:
    """Tell in the answer what a caller has left by now."""
    _tell(scope, limits.quotas(kind, caller))


def _tell(scope: Scope, quotas: Sequence[Quota]) -> None:
    if quotas:
        left = ", ".join([f'"{name}";r={left};t={more_in}' for name, _, left, more_in in quotas])
        scope[ADDED] = (
            (b"ratelimit", left.encode()),
            (b"ratelimit-policy", _policies(*[each[:2] for each in quotas])),
        )


@lru_cache
def _policies(*policies: tuple[str, Rate]) -> bytes:
    """Phrase the policies that a caller meets, which are few and the same for most."""
    return ", ".join(
        f'"{name}";q={rate.amount};w={rate.seconds}' for name, rate in policies
    ).encode()
