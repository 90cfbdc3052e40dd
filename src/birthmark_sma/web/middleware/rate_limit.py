"""Apply the rate limits to requests, and set the RateLimit header fields of responses.

`web.pipeline` and the endpoints that take camera tokens call these functions;
`authority.rate_limits` counts. The header fields are those of
draft-ietf-httpapi-ratelimit-headers-10: lists of structured fields (RFC 9651). `q` (quota) and `r`
(remaining) are units, `w` (window) and `t` (time until more is left) are seconds.
"""

from collections.abc import Awaitable, Sequence
from functools import lru_cache

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.rate_limits.limiter import Quota, RateLimits
from birthmark_sma.authority.rate_limits.limits import Kind
from birthmark_sma.errors import RateLimitedError
from birthmark_sma.rates import Rate
from birthmark_sma.web.request_context import RequestContext

FIELDS = ("RateLimit", "RateLimit-Policy")


def limit_request(
    context: RequestContext, limits: RateLimits, caller: Caller
) -> Awaitable[None] | None:
    """Take a request from the limit of its route, which has one. Raises RateLimitedError.

    Return the query of the shared store, which the caller must await, or None if there is none.
    The endpoint of a batch does it itself, once it knows how much the batch costs. The endpoints
    that take camera tokens ask the shared store themselves, once the body has arrived: until the
    verdict, a token counts there as a possible FAIL, and so holds up the caller's other tokens.
    """
    route = context.route
    kind = route.limit if context.method in route.methods else Kind.ADMIN
    if kind is None or (kind is Kind.VALIDATE and route.batch):
        return None
    consume(context, limits, kind, caller)
    if kind is not Kind.VALIDATE and limits.shared:
        return consume_shared(context, limits, kind, caller)
    return None


def consume(
    context: RequestContext, limits: RateLimits, kind: Kind, caller: Caller, cost: int = 1
) -> None:
    """Take `cost` units from the caller's limit in this process, or raise RateLimitedError."""
    try:
        _set_fields(context, limits.take(kind, caller, cost))
    except RateLimitedError:
        _set_fields(context, limits.quotas(kind, caller))
        raise


def check_left(context: RequestContext, limits: RateLimits, kind: Kind, caller: Caller) -> None:
    """Raise RateLimitedError if a caller has nothing left, before its request costs anything."""
    try:
        limits.check(kind, caller)
    except RateLimitedError:
        show_quotas(context, limits, kind, caller)
        raise


async def consume_shared(
    context: RequestContext, limits: RateLimits, kind: Kind, caller: Caller, cost: int = 1
) -> None:
    """Take `cost` units from the shared store, after `consume` has taken them here.

    Raises RateLimitedError. For a validation it also reserves `cost` possible FAILs. The caller of
    this function gives them back with `RateLimits.release`.
    """
    quotas, refusal = await limits.confirm(kind, caller, cost)
    _set_fields(context, quotas)
    if refusal is not None:
        raise refusal


def record_failed_auth(context: RequestContext, limits: RateLimits) -> None:
    """Count a request with a wrong Authorization field. Without such a field, count nothing.

    Raises RateLimitedError if the address has reached its limit of wrong credentials.
    """
    if context.header_values(b"authorization"):
        count_guess(context, limits)


def count_guess(context: RequestContext, limits: RateLimits) -> None:
    """Count a wrong credential. Raises RateLimitedError as `record_failed_auth` does."""
    if context.address is not None:
        limits.record_failed_auth(context.address)


def show_quotas(context: RequestContext, limits: RateLimits, kind: Kind, caller: Caller) -> None:
    """Set the RateLimit fields of the response to the caller's present quotas."""
    _set_fields(context, limits.quotas(kind, caller))


def _set_fields(context: RequestContext, quotas: Sequence[Quota]) -> None:
    if quotas:
        left = ", ".join([f'"{name}";r={left};t={more_in}' for name, _, left, more_in in quotas])
        context.added_headers = (
            (b"ratelimit", left.encode()),
            (b"ratelimit-policy", _policies(*[each[:2] for each in quotas])),
        )


@lru_cache
def _policies(*policies: tuple[str, Rate]) -> bytes:
    """Return the value of RateLimit-Policy. Most callers have the same one, so it is cached."""
    return ", ".join(
        f'"{name}";q={rate.amount};w={rate.seconds}' for name, rate in policies
    ).encode()
