"""A limit: the rates of one kind of units, and what each caller has used of them.

`limiter.py` has a limit for each kind, and one for each access key that has a rate of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from birthmark_sma.authority.rate_limits.memory_store import MemoryStore
from birthmark_sma.authority.rate_limits.redis_connection import RedisConnection
from birthmark_sma.authority.rate_limits.redis_store import RedisStore
from birthmark_sma.authority.rate_limits.shared_store import SharedStore
from birthmark_sma.authority.rate_limits.shared_windows import SharedWindows
from birthmark_sma.authority.rate_limits.store import Block, Left
from birthmark_sma.counts import counted
from birthmark_sma.errors import RateLimitedError
from birthmark_sma.rates import Rate, burst_of


class Kind(StrEnum):
    """The kind of units that a limit counts. The first three have the names of key scopes.

    The caller of a `renew` is the device itself (`RenewingDevice`).
    """

    PROVISION = "provision"
    VALIDATE = "validate"
    ADMIN = "admin"
    FAILURES = "failures"
    GUESSES = "guesses"
    OCSP = "ocsp"
    RENEW = "renew"


DEFAULTS: Mapping[Kind, str] = {
    Kind.PROVISION: "600/minute",
    Kind.VALIDATE: "300000/minute",
    Kind.ADMIN: "600/minute",
    Kind.FAILURES: "6000/minute",
    Kind.GUESSES: "60/minute",
    Kind.OCSP: "6000/minute",
    Kind.RENEW: "10/hour; 20/day",
}
"""The limits if access is by keys, or if other machines can reach the server.

`validate` is 5,000 tokens a second on average, about as much as one process can validate.
`failures` is one in fifty of these: an aggregation server does not forge the tokens that it passes
on. `ocsp` is 100 signatures a second, of about 0.1 ms each. `renew` is for one device, which renews
once in months, and a few times more if an operator orders that. The other limits are far above what
people and probes need."""

_UNITS = {
    Kind.PROVISION: "devices",
    Kind.VALIDATE: "camera tokens",
    Kind.ADMIN: "requests",
    Kind.FAILURES: "camera tokens that FAIL",
    Kind.GUESSES: "wrong credentials",
    Kind.OCSP: "OCSP requests that need a signature of their own",
    Kind.RENEW: "renewals of this device",
}


class Quota(NamedTuple):
    """The part of one limit that a caller has left."""

    policy: str
    rate: Rate
    remaining: int
    more_in: int
    """Seconds until `remaining` grows; 0 if nothing is used."""


class Limit:
    """The rates of one kind, with the units of all its callers in memory and, if used, in Redis."""

    __slots__ = ("_has_burst", "_named", "kind", "memory", "rates", "redis")

    def __init__(
        self,
        kind: Kind,
        rates: tuple[Rate, ...],
        clock: Callable[[], float],
        redis: RedisConnection | None,
        shared: SharedWindows | None,
    ) -> None:
        self.kind = kind
        alone = len(rates) == 1
        names = [kind.value if alone else f"{kind.value}-{each.seconds}s" for each in rates]
        # What is counted after the fact is no allowance that somebody could spend.
        burst = None if kind in (Kind.FAILURES, Kind.GUESSES) else burst_of(rates)
        self._has_burst = burst is not None
        if burst is not None:
            names, rates = [f"{kind.value}-burst", *names], (burst, *rates)
        self.rates = rates
        self._named = list(zip(names, rates, strict=True))
        self.memory: MemoryStore | SharedStore = (
            MemoryStore(rates, clock, has_burst=self._has_burst)
            if shared is None
            else SharedStore(kind.value, rates, shared, clock, has_burst=self._has_burst)
        )
        reserves = kind is Kind.FAILURES
        self.redis = (
            None
            if redis is None
            else RedisStore(redis, kind.value, rates, reserves=reserves, has_burst=self._has_burst)
        )

    def quotas(self, left: Iterable[Left]) -> tuple[Quota, ...]:
        """Return the quotas of each rate, for what is left of it."""
        # Not `zip` with `strict`, which is slow: this runs for each camera token.
        return tuple([Quota(*self._named[n], *each) for n, each in enumerate(left)])

    def knows(self, who: str) -> bool:
        """Return True if units of a caller were counted. Quick, as most callers have no FAILs."""
        return self.memory.knows(who) or (self.redis is not None and who in self.redis.blocks)

    def blocked(self, who: str) -> Block | None:
        """Return the rate under which a caller has nothing left, or None."""
        # Redis first: it counts all processes, and memory only this one.
        told = None if self.redis is None else self.redis.blocked(who)
        return told or self.memory.blocked(who)

    def refusal(self, cost: int, block: Block) -> RateLimitedError:
        """Return the error for `cost` units that a rate does not allow now, or never allows."""
        units, (name, rate) = _UNITS[self.kind], self._named[block.number]
        if cost > rate.amount and not (self._has_burst and block.number == 0):
            message = (
                f"{cost} {units} at once can never pass: the limit is {rate}. Send fewer at once"
            )
        else:
            message = (
                f"Too many {units}: the limit is {rate}. Try again in"
                f" {counted(block.wait, 'second')}"
            )
        return RateLimitedError(message, retry_after=block.wait, policy=name)
