"""Rate limits: what a caller may ask for in a while, by its access key or else its address.

Every process counts in memory. Where a store is shared as well, what memory allows is then asked
for there, and both must agree; while the store is away, memory decides alone.

Three kinds are asked for before something is done: `provision`, `validate` (a unit a camera token)
and `admin`. Two are counted once they have happened, and then hold back what follows: `failures`,
the FAILs that a caller gathers, and `guesses`, the wrong credentials that come from an address.

What is under way may yet FAIL. The thread that judges asks for each request whether anything is
left (`failures_left`). Where processes share a store, a request reserves its tokens there first.
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

_MOST_OWN_RATES = 1_024  # different ones of access keys; operators write them

_log = logging.getLogger(__name__)


class Kind(StrEnum):
    """What is limited. The first three are named as the scopes of access keys are."""

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
"""Where access is by keys, or others than this machine reach the server. An aggregation server may
have 5,000 tokens a second validated on average, about what one process can do, and one in fifty of
them may FAIL: it is not the one who forges. The others are far above what people and probes do."""

_UNITS = {
    Kind.PROVISION: "devices",
    Kind.VALIDATE: "camera tokens",
    Kind.ADMIN: "requests",
    Kind.FAILURES: "camera tokens that FAIL",
    Kind.GUESSES: "wrong credentials",
}


class Quota(NamedTuple):
    """What a caller has left of one limit."""

    policy: str
    rate: Rate
    remaining: int
    more_in: int
    """Seconds until there is more of it; 0 where all of it is there."""


@dataclass(slots=True)
class RateLimitFigures:
    """What happened in this process, for whoever watches."""

    refused: Counter[Kind] = field(default_factory=Counter)
    store: StoreFigures = field(default_factory=StoreFigures)


class _Limit:
    """One rate of one kind."""

    __slots__ = ("kind", "name", "rate", "windows")

    def __init__(self, kind: Kind, rate: Rate, *, alone: bool) -> None:
        self.kind = kind
        self.rate = rate
        self.name = kind.value if alone else f"{kind.value}-{rate.seconds}s"
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
    """All limits of one process. Belongs to its event loop; nothing here waits but `confirm`."""

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
        """Whether anything is limited, but for what access keys bring along."""
        return any(self._limits.values())

    @property
    def shared(self) -> bool:
        """Whether there is a store to ask, and it answers."""
        return self._store is not None and self._store.available

    async def start(self) -> None:
        """Find the store, if there is one. The service starts whether it is there or not."""
        if self._store is not None:
            await self._store.start()

    async def close(self) -> None:
        """Let go of the store."""
        if self._reserved is not None:
            await self._reserved.close()
        if self._store is not None:
            await self._store.close()

    def take(self, kind: Kind, caller: Caller, cost: int = 1) -> tuple[Quota, ...]:
        """Let a caller have so many units of a kind, and say what is left; or raise.

        Raises RateLimitedError, and then nothing is counted. Where `shared` says so, `confirm` must
        follow.
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
                for earlier in limits[:number]:
                    earlier.windows.give_back(who, cost)
                wait = seconds_until(limit.rate, limit.windows.usage(who, now), cost)
                raise self._refusal(limit, cost, wait)
            left.append(Quota(limit.name, limit.rate, *taken))
        return tuple(left)

    async def confirm(
        self, kind: Kind, caller: Caller, cost: int = 1
    ) -> tuple[tuple[Quota, ...], RateLimitedError | None]:
        """Ask the store too: return what it leaves, and the refusal where it refuses.

        Where the store is away, what memory said stands.
        """
        assert self._store is not None  # noqa: S101  `shared` said so
        limits = self._limits_of(kind, caller)
        who = ledger_partition(caller)
        refusal = None
        reserved = False
        quotas = []
        try:
            if kind is Kind.VALIDATE:
                refusal = await self._reserve(who, cost)
                reserved = refusal is None
            for limit in limits:
                if refusal is not None:
                    break
                wait, usage = await self._store.take(_key(limit, who), limit.rate, cost)
                quotas.append(limit.quota(usage))
                if wait is not None:
                    refusal = self._refusal(limit, cost, wait)
                    self.release(kind, caller, cost)
        except StoreAwayError:
            return self.quotas(kind, caller), None
        except asyncio.CancelledError:
            if reserved:
                self.release(kind, caller, cost)
            raise
        if refusal is not None:
            for limit in limits:
                limit.windows.give_back(who, cost)
        return (*self._failures_of(kind, who), *quotas), refusal

    def release(self, kind: Kind, caller: Caller, cost: int, failed: int = 0) -> None:
        """Give back what `confirm` reserved, now that so many tokens have failed."""
        if self._reserved is not None and kind is Kind.VALIDATE:
            self._give_back(self._failures, ledger_partition(caller), cost, failed)

    def quotas(self, kind: Kind, caller: Caller) -> tuple[Quota, ...]:
        """Say what a caller has left, as far as this process has counted it."""
        limits = self._limits_of(kind, caller)
        if not limits and not self._failures:
            return ()
        now = self._clock()
        who = ledger_partition(caller)
        own = tuple([limit.quota(limit.windows.usage(who, now)) for limit in limits])
        return self._failures_of(kind, who) + own

    @property
    def limits_failures(self) -> bool:
        """Say whether FAILs are limited."""
        return bool(self._failures)

    def failures_left(self, who: str) -> int:
        """Say how many FAILs a caller may still gather. For any thread."""
        now = self._clock()
        lefts = (remaining(each.rate, each.windows.usage(who, now)) for each in self._failures)
        return min(lefts)

    def failure_refusal(self, who: str, more: int) -> RateLimitedError:
        """Return what a caller is told once it gathers so many more FAILs. For any thread."""
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
        """Count FAILs that a caller was given. For any thread."""
        for limit in self._failures:
            limit.windows.fill(who, times, self._clock())

    def record_failed_auth(self, address: str | None) -> None:
        """Count wrong credentials from an address, or raise RateLimitedError where it had enough.

        Right credentials are not asked about here: whoever shares an address with somebody who
        guesses is still let in.
        """
        who = ledger_partition(Caller(address))
        for limit in self._guesses:
            if wait := self._wait(limit, who, self._clock()):
                raise self._refusal(limit, 1, wait)
            self._count(limit, who, 1)

    # --- what is counted once it has happened

    def _wait(self, limit: _Limit, who: str, now: float) -> int:
        """Return for how many seconds what happened holds a caller back; 0 where it does not."""
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
        """Reserve tokens of a request in the store: all limits hold them, or none does."""
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

    def _learn(self, limit: _Limit, who: str, usage: Usage) -> None:
        wait = seconds_until(limit.rate, usage, 1)
        self._held_back.note(limit, who, self._clock() + wait if wait else 0.0)

    def _failures_left(self, limit: _Limit, who: str, now: float) -> tuple[Quota, ...]:
        """Say what is left of one limit of failures. Raises RateLimitedError where nothing is."""
        if wait := self._wait(limit, who, now):
            raise self._refusal(limit, 1, wait)
        usage = limit.windows.usage(who, now)
        return () if usage is UNUSED else (limit.quota(usage),)

    def _failures_of(self, kind: Kind, who: str) -> tuple[Quota, ...]:
        """Say what is left of all of them, once there are some."""
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

    # --- which limits

    def _refusal(self, limit: _Limit, cost: int, wait: int) -> RateLimitedError:
        self.figures.refused[limit.kind] += 1
        return limit.refusal(cost, max(1, wait))

    def _limits_of(self, kind: Kind, caller: Caller) -> tuple[_Limit, ...]:
        key = caller.key
        if key is not None and key.rate_limit is not None and key.scope.value == kind.value:
            return self._own(kind, key.rate_limit)
        return self._limits[kind]

    def _limits_of_text(self, kind: Kind, text: str) -> tuple[_Limit, ...]:
        """The limits that a key brings along."""
        try:
            return _limits(kind, parse_rates(text))
        except RateRefusedError as error:
            _log.warning("The rate of an access key cannot be used, and the default is: %s", error)
            return self._limits[kind]


class _HeldBack:
    """Until when callers have had enough, as the store said."""

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
    """Return the limits that settings ask for."""
    rates = {kind: _rates_of(settings, kind) for kind in Kind}
    url = settings.rate_store
    return RateLimits(rates, None if url is None else partial(SharedWindows, url))


def rate_text(settings: Settings, kind: Kind) -> str | None:
    """Return a limit as it is written, or None where there is none."""
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
