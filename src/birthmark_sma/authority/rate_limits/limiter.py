"""Rate limits for each caller, which is an access key or else an address.

Called by the rate-limit middleware, by authentication and by the validation thread. A server counts
in memory: of its one process (`memory_store`), or of all its processes (`shared_store`). If Redis
is configured, a request that memory allows must also be allowed there (`redis_store`); while Redis
is unavailable, memory decides alone.

Five kinds of units are consumed before the work: `provision`, `validate` (one unit for each camera
token), `admin`, `renew`, whose callers are the devices themselves, and `ocsp` (one for each
response that only its caller can use). Their allowance is spread over its window
(`rates.burst_of`). Two kinds are counted after the fact, and then refuse the next requests:
`failures` are the FAILs of a caller, `guesses` are the wrong credentials from an address.

Requests in progress may still FAIL, so a check before the work is not enough. The validation thread
therefore calls `reserve_failures` for each request. With Redis, each request also reserves its
tokens there first.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.rate_limits.limits import DEFAULTS, KINDS_OF_SCOPES, UNITS, Kind
from birthmark_sma.authority.rate_limits.memory_store import MemoryStore
from birthmark_sma.authority.rate_limits.redis_connection import (
    RedisConnection,
    StoreAwayError,
    StoreFigures,
)
from birthmark_sma.authority.rate_limits.redis_store import RedisStore
from birthmark_sma.authority.rate_limits.shared_store import SharedStore
from birthmark_sma.authority.rate_limits.shared_windows import SharedWindows
from birthmark_sma.authority.rate_limits.store import Block, Left, Usage, remaining, seconds_until
from birthmark_sma.config import Settings
from birthmark_sma.counts import counted
from birthmark_sma.errors import RateLimitedError, RateRefusedError
from birthmark_sma.rates import Rate, burst_of, parse_rates

_MOST_OWN_RATES = 1_024  # cached limits of access keys that have a rate of their own

_log = logging.getLogger(__name__)


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
        units, (name, rate) = UNITS[self.kind], self._named[block.number]
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


@dataclass(slots=True)
class RateLimitFigures:
    """Counters of this process for the metrics: the state of Redis, and refusals by kind."""

    store: StoreFigures = field(default_factory=StoreFigures)
    refused: Counter[Kind] = field(default_factory=Counter)


class RateLimits:
    """All limits of one process.

    Owned by the event loop, except the methods that are documented as safe from any thread. Only
    `start`, `confirm` and `close` wait.
    """

    def __init__(
        self,
        rates: Mapping[Kind, tuple[Rate, ...]],
        redis: RedisConnection | None = None,
        clock: Callable[[], float] = time.monotonic,
        shared: SharedWindows | None = None,
    ) -> None:
        self._shared_windows = shared
        self.figures = RateLimitFigures() if redis is None else RateLimitFigures(redis.figures)
        self._redis = redis
        self._clock = clock
        self._limits = {kind: self._make_limit(kind, rates.get(kind, ())) for kind in Kind}
        self._failures = self._limits[Kind.FAILURES]
        self._guesses = self._limits[Kind.GUESSES]
        self._own = lru_cache(_MOST_OWN_RATES)(self._limit_of_text)

    @property
    def shared(self) -> bool:
        """True if Redis is configured and available. Then `confirm` must follow each `take`."""
        return self._redis is not None and self._redis.available

    async def start(self) -> None:
        """Connect to Redis, if configured. The service starts even if Redis is unavailable."""
        if self._redis is not None:
            await self._redis.start()

    async def close(self) -> None:
        """Cancel the tasks that use Redis, and close the connections."""
        if self._redis is not None:
            await self._redis.close()

    def take(self, kind: Kind, caller: Caller, cost: int = 1) -> tuple[Quota, ...]:
        """Consume `cost` units of a kind in memory and return the remaining quotas.

        If `shared` is true, `confirm` must follow. Raises RateLimitedError, and then no unit is
        counted.
        """
        limit = self._limits[kind] if caller.key is None else self._limit_of(kind, caller)
        who = caller.partition
        quotas: tuple[Quota, ...] = ()
        failures = self._failures
        if kind is Kind.VALIDATE and failures.knows(who):
            if block := failures.blocked(who):
                raise self._refusal(failures, 1, block)
            quotas = self._failures_of(kind, who)
        if limit.rates:
            left, block = limit.memory.take(who, cost)
            if block is not None:
                raise self._refusal(limit, cost, block)
            quotas += limit.quotas(left)
        return quotas

    def check(self, kind: Kind, caller: Caller) -> None:
        """Raise RateLimitedError if a caller has nothing left of a kind. Count nothing."""
        limits = (self._failures,) if kind is Kind.VALIDATE else ()
        who = caller.partition
        for limit in (*limits, self._limit_of(kind, caller)):
            if limit.rates and (block := limit.blocked(who)):
                raise self._refusal(limit, 1, block)

    async def confirm(
        self, kind: Kind, caller: Caller, cost: int = 1
    ) -> tuple[tuple[Quota, ...], RateLimitedError | None]:
        """Consume the units in Redis too; return the remaining quotas, and the refusal or None.

        Call it after `take`. For `validate` it also reserves the tokens, which `release` must give
        back later, unless the request is refused. If Redis refuses, the units are given back in
        memory. If Redis is unavailable, the decision of `take` stands.
        """
        limit = self._limit_of(kind, caller)
        failures = self._failures if kind is Kind.VALIDATE and self._failures.rates else None
        who = caller.partition
        refusal = None
        quotas: tuple[Quota, ...] = ()
        try:
            # Reserve first: a request that is refused here must not use up the limit below.
            if failures is not None and failures.redis is not None:
                block = await failures.redis.reserve(who, cost)
                refusal = block and self._refusal(failures, 1, block)
            if refusal is None and limit.rates and limit.redis is not None:
                try:
                    left, block = await limit.redis.take(who, cost)
                except asyncio.CancelledError:
                    # The caller left. Without this its tokens stay reserved and hold back others.
                    self.release(kind, caller, cost)
                    raise
                quotas = limit.quotas(left)
                if block is not None:
                    refusal = self._refusal(limit, cost, block)
                    self.release(kind, caller, cost)
        except StoreAwayError:
            return self.quotas(kind, caller), None
        if refusal is not None:
            limit.memory.give_back(who, cost)
        return self._failures_of(kind, who) + quotas, refusal

    def release(self, kind: Kind, caller: Caller, cost: int, failed: int = 0) -> None:
        """Give back the tokens that `confirm` reserved, of which `failed` were judged as FAIL."""
        failures = self._failures
        if kind is Kind.VALIDATE and failures.rates and failures.redis is not None:
            failures.redis.release(caller.partition, cost, failed)

    def quotas(self, kind: Kind, caller: Caller) -> tuple[Quota, ...]:
        """Return the quotas that a caller has left, according to the memory of this process."""
        limit = self._limit_of(kind, caller)
        who = caller.partition
        return self._failures_of(kind, who) + limit.quotas(limit.memory.left(who))

    @property
    def limits_failures(self) -> bool:
        """True if FAILs are limited."""
        return bool(self._failures.rates)

    def reserve_failures(self, who: str, failed: int, wanted: int) -> int:
        """Return how many more FAILs a caller may get, and reserve up to `wanted` of them.

        `failed` FAILs are not counted yet. Call it only if FAILs are limited, and in one thread
        alone. `release_failures` gives the reservations up.
        """
        return self._failures.memory.reserve(who, failed, wanted)

    def release_failures(self) -> None:
        """Give up what was reserved for all callers."""
        self._failures.memory.release_all()

    def failure_refusal(self, who: str, more: int) -> RateLimitedError:
        """Return the error for a caller that has reached its limit after `more` further FAILs.

        The error has the time to wait of the rate that takes longest. Safe from any thread.
        """
        blocks = []
        usages = self._failures.memory.usage(who)
        for number, (rate, usage) in enumerate(zip(self._failures.rates, usages, strict=True)):
            current = usage.current + min(more, remaining(rate, usage))
            filled = Usage(usage.previous, current, usage.left or rate.seconds)
            blocks.append(Block(number, max(1, seconds_until(rate, filled, 1))))
        return self._refusal(self._failures, 1, max(blocks, key=lambda block: block.wait))

    def failed(self, who: str, times: int = 1) -> None:
        """Count the FAILs of a caller in memory. Safe from any thread."""
        self._failures.memory.count(who, times)

    def record_failed_auth(self, address: str | None) -> None:
        """Count a wrong credential from an address. Raise RateLimitedError if it had too many.

        Do not call it for correct credentials: a caller that shares its address with an attacker
        must still be authenticated.
        """
        guesses = self._guesses
        if not guesses.rates:
            return
        who = Caller(address).partition
        if block := guesses.blocked(who):
            raise self._refusal(guesses, 1, block)
        guesses.memory.count(who, 1)
        if guesses.redis is not None:
            guesses.redis.count(who, 1)

    def _failures_of(self, kind: Kind, who: str) -> tuple[Quota, ...]:
        """Return the quotas of FAILs for a validation by a caller that had FAILs; else none."""
        limit = self._failures
        if kind is not Kind.VALIDATE or not limit.knows(who):
            return ()
        block = None if limit.redis is None else limit.redis.blocked(who)
        left = list(limit.memory.left(who))
        if block is not None:
            left[block.number] = (0, block.wait)
        return limit.quotas(left)

    def _refusal(self, limit: Limit, cost: int, block: Block) -> RateLimitedError:
        self.figures.refused[limit.kind] += 1
        return limit.refusal(cost, block)

    def _limit_of(self, kind: Kind, caller: Caller) -> Limit:
        key = caller.key
        # A key's own rate replaces the default for the requests of its scope, not for FAILs.
        if key is not None and key.rate_limit is not None and KINDS_OF_SCOPES[key.scope] is kind:
            return self._own(kind, key.rate_limit)
        return self._limits[kind]

    def _limit_of_text(self, kind: Kind, text: str) -> Limit:
        """Return the limit of an access key's own rate, or the default if it cannot be parsed."""
        try:
            return self._make_limit(kind, parse_rates(text))
        except RateRefusedError as error:
            _log.warning("The rate of an access key cannot be used, and the default is: %s", error)
            return self._limits[kind]

    def _make_limit(self, kind: Kind, rates: tuple[Rate, ...]) -> Limit:
        return Limit(kind, rates, self._clock, self._redis, self._shared_windows)


def make_rate_limits(settings: Settings, shared: SharedWindows | None = None) -> RateLimits:
    """Create the rate limits of a process from its settings.

    With `shared`, all processes that have this memory count together.
    """
    if shared is not None:
        shared.join()
    rates = {kind: _rates_of(settings, kind) for kind in Kind}
    url = settings.rate_store
    return RateLimits(rates, None if url is None else RedisConnection(url), shared=shared)


def rate_text(settings: Settings, kind: Kind) -> str | None:
    """Return the configured or default limit of a kind as text, or None if there is no limit."""
    text: str | None = getattr(settings, f"rate_{kind.value}")
    if text is None and not settings.serves_this_machine_alone:
        text = DEFAULTS[kind]
    return text if text is not None and parse_rates(text) else None


def _rates_of(settings: Settings, kind: Kind) -> tuple[Rate, ...]:
    text = rate_text(settings, kind)
    return () if text is None else parse_rates(text)
