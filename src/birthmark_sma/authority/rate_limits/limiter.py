"""Rate limits for each caller, which is an access key or else an address.

Called by the rate-limit middleware, by authentication and by the validation thread. Each process
counts in memory (`memory_store`). If Redis is configured, a request that memory allows must also be
allowed there (`redis_store`); while Redis is unavailable, memory decides alone.

Three kinds of units are consumed before the work: `provision`, `validate` (one unit for each camera
token) and `admin`. Two kinds are counted after the fact, and then refuse the next requests:
`failures` are the FAILs of a caller, `guesses` are the wrong credentials from an address.

Requests in progress may still FAIL, so a check before the work is not enough. The validation thread
therefore checks `failures_left` for each request. With Redis, each request also reserves its tokens
there first (`redis_reservations`).
"""

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache, partial
from typing import NamedTuple

from birthmark_sma.authority.access.caller import Caller, ledger_partition
from birthmark_sma.authority.rate_limits.memory_store import (
    MOST_CALLERS,
    UNUSED,
    GuardedWindows,
    Usage,
    Windows,
    remaining,
    seconds_until,
)
from birthmark_sma.authority.rate_limits.redis_reservations import SharedReservations
from birthmark_sma.authority.rate_limits.redis_store import (
    SharedWindows,
    StoreAwayError,
    StoreFigures,
)
from birthmark_sma.config import Settings
from birthmark_sma.errors import RateLimitedError, RateRefusedError
from birthmark_sma.rates import Rate, parse_rates

_MOST_OWN_RATES = 1_024  # cached limits of access keys that have a rate of their own

_log = logging.getLogger(__name__)


class Kind(StrEnum):
    """The kind of units that a limit counts. The first three have the names of key scopes."""

    PROVISION = "provision"
    VALIDATE = "validate"
    ADMIN = "admin"
    FAILURES = "failures"
    GUESSES = "guesses"


DEFAULTS: Mapping[Kind, str] = {
    Kind.PROVISION: "600/minute",
    Kind.VALIDATE: "300000/minute",
    Kind.ADMIN: "600/minute",
    Kind.FAILURES: "6000/minute",
    Kind.GUESSES: "60/minute",
}
"""The limits if access is by keys, or if other machines can reach the server.

`validate` is 5,000 tokens a second on average, about as much as one process can validate.
`failures` is one in fifty of these: an aggregation server does not forge the tokens that it passes
on. The other limits are far above what people and probes need."""

_UNITS = {
    Kind.PROVISION: "devices",
    Kind.VALIDATE: "camera tokens",
    Kind.ADMIN: "requests",
    Kind.FAILURES: "camera tokens that FAIL",
    Kind.GUESSES: "wrong credentials",
}


class Quota(NamedTuple):
    """The part of one limit that a caller has left."""

    policy: str
    rate: Rate
    remaining: int
    more_in: int
    """Seconds until `remaining` grows; 0 if nothing is used."""


@dataclass(slots=True)
class RateLimitFigures:
    """Counters of this process for the metrics: refusals by kind, and the state of Redis."""

    refused: Counter[Kind] = field(default_factory=Counter)
    store: StoreFigures = field(default_factory=StoreFigures)


class _Limit:
    """One rate of one kind, with the windows of all its callers in memory."""

    __slots__ = ("kind", "name", "rate", "windows")

    def __init__(self, kind: Kind, rate: Rate, *, alone: bool) -> None:
        self.kind = kind
        self.rate = rate
        self.name = kind.value if alone else f"{kind.value}-{rate.seconds}s"
        # The validation thread counts FAILs while the event loop reads them. All other kinds belong
        # to the event loop, which saves the lock.
        self.windows = GuardedWindows(rate) if kind is Kind.FAILURES else Windows(rate)

    def quota(self, usage: Usage) -> Quota:
        left = remaining(self.rate, usage)
        more_in = 0 if left == self.rate.amount else seconds_until(self.rate, usage, left + 1)
        return Quota(self.name, self.rate, left, more_in)

    def refusal(self, cost: int, wait: int) -> RateLimitedError:
        units = _UNITS[self.kind]
        if cost > self.rate.amount:
            message = (
                f"{cost} {units} at once can never pass: the limit is {self.rate}. Send fewer at"
                " once"
            )
        else:
            message = (
                f"Too many {units}: the limit is {self.rate}. Try again in {wait}"
                f" {'second' if wait == 1 else 'seconds'}"
            )
        return RateLimitedError(message, retry_after=wait, policy=self.name)


class RateLimits:
    """All limits of one process.

    Owned by the event loop, except the methods that are documented as safe from any thread. Only
    `start`, `confirm` and `close` wait.
    """

    def __init__(
        self,
        rates: Mapping[Kind, tuple[Rate, ...]],
        store: Callable[[StoreFigures], SharedWindows] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.figures = RateLimitFigures()
        self._clock = clock
        self._limits = {kind: _limits(kind, rates.get(kind, ())) for kind in Kind}
        self._failures = self._limits[Kind.FAILURES]
        self._guesses = self._limits[Kind.GUESSES]
        self._store = None if store is None else store(self.figures.store)
        self._reserved = None if self._store is None else SharedReservations(self._store)
        self._own = lru_cache(_MOST_OWN_RATES)(self._limits_of_text)
        self._held_back = _HeldBack()

    @property
    def counts(self) -> bool:
        """True if any limit is configured, apart from the rates of access keys."""
        return any(self._limits.values())

    @property
    def shared(self) -> bool:
        """True if Redis is configured and available. Then `confirm` must follow each `take`."""
        return self._store is not None and self._store.available

    async def start(self) -> None:
        """Connect to Redis, if configured. The service starts even if Redis is unavailable."""
        if self._store is not None:
            await self._store.start()

    async def close(self) -> None:
        """Cancel the tasks that use Redis, and close the connections."""
        if self._reserved is not None:
            await self._reserved.close()
        if self._store is not None:
            await self._store.close()

    def take(self, kind: Kind, caller: Caller, cost: int = 1) -> tuple[Quota, ...]:
        """Consume `cost` units of a kind in memory and return the remaining quotas.

        If `shared` is true, `confirm` must follow. Raises RateLimitedError, and then no unit is
        counted.
        """
        limits = self._limits[kind] if caller.key is None else self._limits_of(kind, caller)
        failures = self._failures if kind is Kind.VALIDATE else ()
        if not limits and not failures:
            return ()
        now = self._clock()
        who = ledger_partition(caller)
        left: list[Quota] = []
        for limit in failures:
            if limit.windows or self._held_back:
                left += self._failures_left(limit, who, now)
        for number, limit in enumerate(limits):
            taken = limit.windows.take(who, cost, now)
            if taken is None:
                # A refused request must not use up the limits that had allowed it.
                for earlier in limits[:number]:
                    earlier.windows.give_back(who, cost)
                wait = seconds_until(limit.rate, limit.windows.usage(who, now), cost)
                raise self._refusal(limit, cost, wait)
            left.append(Quota(limit.name, limit.rate, *taken))
        return tuple(left)

    async def confirm(
        self, kind: Kind, caller: Caller, cost: int = 1
    ) -> tuple[tuple[Quota, ...], RateLimitedError | None]:
        """Consume the units in Redis too; return the remaining quotas, and the refusal or None.

        Call it after `take`. For `validate` it also reserves the tokens, which `release` must give
        back later, unless the request is refused. If a limit refuses in Redis, the units are given
        back in memory, and in Redis to the limits before it. If Redis is unavailable, the decision
        of `take` stands.
        """
        assert self._store is not None  # noqa: S101  `shared` said so
        limits = self._limits_of(kind, caller)
        who = ledger_partition(caller)
        refusal = None
        reserved = False
        usages: list[Usage] = []
        try:
            # Reserve first: a request that is refused here must not use up the limits below.
            if kind is Kind.VALIDATE:
                refusal = await self._reserve(who, cost)
                reserved = refusal is None
            for limit in limits:
                if refusal is not None:
                    break
                wait, usage = await self._store.take(_key(limit, who), limit.rate, cost)
                usages.append(usage)
                if wait is not None:
                    refusal = self._refusal(limit, cost, wait)
                    self.release(kind, caller, cost)
        except StoreAwayError:
            return self.quotas(kind, caller), None
        except asyncio.CancelledError:
            # The caller left. Without this its tokens stay reserved and hold back others.
            if reserved:
                self.release(kind, caller, cost)
            raise
        if refusal is not None:
            for limit in limits:
                limit.windows.give_back(who, cost)
            # The last usage is that of the limit that refused: it took no units in Redis.
            for number, usage in enumerate(usages[:-1]):
                self._store.give_back(_key(limits[number], who), limits[number].rate, cost)
                usages[number] = usage._replace(current=max(0, usage.current - cost))
        quotas = [limit.quota(usage) for limit, usage in zip(limits, usages, strict=False)]
        return (*self._failures_of(kind, who), *quotas), refusal

    def release(self, kind: Kind, caller: Caller, cost: int, failed: int = 0) -> None:
        """Give back the tokens that `confirm` reserved, of which `failed` were judged as FAIL."""
        if self._reserved is not None and kind is Kind.VALIDATE:
            self._give_back(self._failures, ledger_partition(caller), cost, failed)

    def quotas(self, kind: Kind, caller: Caller) -> tuple[Quota, ...]:
        """Return the quotas that a caller has left, according to the memory of this process."""
        limits = self._limits_of(kind, caller)
        if not limits and not self._failures:
            return ()
        now = self._clock()
        who = ledger_partition(caller)
        own = tuple([limit.quota(limit.windows.usage(who, now)) for limit in limits])
        return self._failures_of(kind, who) + own

    @property
    def limits_failures(self) -> bool:
        """True if FAILs are limited."""
        return bool(self._failures)

    def failures_left(self, who: str) -> int:
        """Return how many more FAILs a caller may get. Call it only if FAILs are limited.

        Safe from any thread.
        """
        now = self._clock()
        lefts = (remaining(each.rate, each.windows.usage(who, now)) for each in self._failures)
        return min(lefts)

    def failure_refusal(self, who: str, more: int) -> RateLimitedError:
        """Return the error for a caller that has reached its limit after `more` further FAILs.

        The error has the time to wait of the limit that takes longest. Safe from any thread.
        """
        now = self._clock()
        waits = []
        for limit in self._failures:
            usage = limit.windows.usage(who, now)
            current = usage.current + min(more, remaining(limit.rate, usage))
            filled = Usage(usage.previous, current, usage.left or limit.rate.seconds)
            waits.append((seconds_until(limit.rate, filled, 1), limit))
        wait, limit = max(waits, key=lambda each: each[0])
        return self._refusal(limit, 1, wait)

    def failed(self, who: str, times: int = 1) -> None:
        """Count the FAILs of a caller in memory. Safe from any thread."""
        for limit in self._failures:
            limit.windows.fill(who, times, self._clock())

    def record_failed_auth(self, address: str | None) -> None:
        """Count a wrong credential from an address. Raise RateLimitedError if it had too many.

        Do not call it for correct credentials: a caller that shares its address with an attacker
        must still be authenticated.
        """
        who = ledger_partition(Caller(address))
        for limit in self._guesses:
            if wait := self._wait(limit, who, self._clock()):
                raise self._refusal(limit, 1, wait)
            self._count(limit, who, 1)

    # --- units that are counted after the fact

    def _wait(self, limit: _Limit, who: str, now: float) -> int:
        """Return for how many seconds a limit of these kinds refuses a caller; 0 for not at all."""
        # Redis first: it counts all processes, and memory only this one.
        held_back = self._held_back.until(limit, who) - now
        if held_back > 0:
            return math.ceil(held_back)
        usage = limit.windows.usage(who, now)
        return 0 if usage is UNUSED else seconds_until(limit.rate, usage, 1)

    def _count(self, limit: _Limit, who: str, times: int) -> None:
        limit.windows.fill(who, times, self._clock())
        if self._store is not None:
            learn = partial(self._learn, limit, who)
            self._store.tell(_key(limit, who), limit.rate, times, learn)

    async def _reserve(self, who: str, cost: int) -> RateLimitedError | None:
        """Reserve the tokens of a request in Redis, under all limits of FAILs or under none.

        Return the refusal, or None. Raises StoreAwayError.
        """
        assert self._reserved is not None  # noqa: S101
        for number, limit in enumerate(self._failures):
            key = _key(limit, who)
            try:
                wait = await self._reserved.reserve(key, limit.rate, cost)
            except asyncio.CancelledError:
                self._give_back(self._failures[:number], who, cost)
                raise
            if wait is not None:
                self._held_back.note(limit, who, self._clock() + wait)
                self._give_back(self._failures[:number], who, cost)
                return self._refusal(limit, 1, wait)
        return None

    def _give_back(self, limits: Sequence[_Limit], who: str, cost: int, failed: int = 0) -> None:
        assert self._reserved is not None  # noqa: S101
        for limit in limits:
            self._reserved.release(_key(limit, who), limit.rate, cost, failed)

    # Called with the usage of all processes, as Redis has it.
    def _learn(self, limit: _Limit, who: str, usage: Usage) -> None:
        wait = seconds_until(limit.rate, usage, 1)
        self._held_back.note(limit, who, self._clock() + wait if wait else 0.0)

    def _failures_left(self, limit: _Limit, who: str, now: float) -> tuple[Quota, ...]:
        """Return the quota of one limit of FAILs; none for a caller without FAILs.

        Raises RateLimitedError if nothing is left.
        """
        if wait := self._wait(limit, who, now):
            raise self._refusal(limit, 1, wait)
        usage = limit.windows.usage(who, now)
        return () if usage is UNUSED else (limit.quota(usage),)

    def _failures_of(self, kind: Kind, who: str) -> tuple[Quota, ...]:
        """Return the quotas of all limits of FAILs for a validation; none for other kinds.

        A limit under which a caller has no FAILs is left out.
        """
        if kind is not Kind.VALIDATE:
            return ()
        now = self._clock()
        left = []
        for limit in self._failures:
            usage = limit.windows.usage(who, now)
            if wait := self._wait(limit, who, now):
                left.append(Quota(limit.name, limit.rate, 0, wait))
            elif usage is not UNUSED:
                left.append(limit.quota(usage))
        return tuple(left)

    # --- selection of limits

    def _refusal(self, limit: _Limit, cost: int, wait: int) -> RateLimitedError:
        self.figures.refused[limit.kind] += 1
        return limit.refusal(cost, max(1, wait))

    def _limits_of(self, kind: Kind, caller: Caller) -> tuple[_Limit, ...]:
        key = caller.key
        # A key's own rate replaces the default for the requests of its scope, not for FAILs.
        if key is not None and key.rate_limit is not None and key.scope.value == kind.value:
            return self._own(kind, key.rate_limit)
        return self._limits[kind]

    def _limits_of_text(self, kind: Kind, text: str) -> tuple[_Limit, ...]:
        """Return the limits of an access key's own rate, or the default if it cannot be parsed."""
        try:
            return _limits(kind, parse_rates(text))
        except RateRefusedError as error:
            _log.warning("The rate of an access key cannot be used, and the default is: %s", error)
            return self._limits[kind]


class _HeldBack:
    """The callers that have reached a limit according to Redis, and until when.

    Times are of the limiter's clock. At most `MOST_CALLERS` are kept; the oldest are dropped.
    """

    def __init__(self) -> None:
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def until(self, limit: _Limit, who: str) -> float:
        return self._until.get((limit.name, who), 0.0) if self._until else 0.0

    def note(self, limit: _Limit, who: str, until: float) -> None:
        self._until[limit.name, who] = until
        self._until.move_to_end((limit.name, who))
        if len(self._until) > MOST_CALLERS:
            self._until.popitem(last=False)


def make_rate_limits(settings: Settings) -> RateLimits:
    """Create the rate limits of a process from its settings."""
    rates = {kind: _rates_of(settings, kind) for kind in Kind}
    url = settings.rate_store
    return RateLimits(rates, None if url is None else partial(SharedWindows, url))


def rate_text(settings: Settings, kind: Kind) -> str | None:
    """Return the configured or default limit of a kind as text, or None if there is no limit."""
    text: str | None = getattr(settings, f"rate_{kind.value}")
    if text is None and not settings.serves_this_machine_alone:
        text = DEFAULTS[kind]
    return text if text is not None and parse_rates(text) else None


def _rates_of(settings: Settings, kind: Kind) -> tuple[Rate, ...]:
    text: str | None = getattr(settings, f"rate_{kind.value}")
    if text is None:
        return () if settings.serves_this_machine_alone else parse_rates(DEFAULTS[kind])
    return parse_rates(text)


def _limits(kind: Kind, rates: tuple[Rate, ...]) -> tuple[_Limit, ...]:
    return tuple(_Limit(kind, rate, alone=len(rates) == 1) for rate in rates)


def _key(limit: _Limit, who: str) -> str:
    return f"{limit.kind.value}/{who}"
