"""Counts the units of all processes in Redis, and reserves those that may still FAIL.

`limiter` uses it where Redis is configured. What a process wants for one caller is sent in one call
of `windows.lua`: while a call is in progress, further requests wait and are sent together. The
busier a caller, the fewer calls a request needs.

Camera tokens in progress may still FAIL, so each process holds a lease for each caller: a number of
units, reserved in Redis, that expires by itself if the process is killed. If other processes have
reserved all that is left, a request waits for them, up to `WAIT_SECONDS`.
"""

import asyncio
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

from birthmark_sma.authority.rate_limits.redis_connection import RedisConnection, StoreAwayError
from birthmark_sma.authority.rate_limits.store import (
    MOST_CALLERS,
    Block,
    Decision,
    Usage,
    find_block,
    left_of,
    seconds_until,
)
from birthmark_sma.rates import Rate

HOLD_SECONDS = 60
"""A lease expires in Redis after this time unless it is renewed. A process uses it for half of this
time only, so that it never relies on a lease that Redis has dropped."""

WAIT_SECONDS = 10.0
"""The longest that a request waits for units that other processes have reserved."""
_LOOK_SECONDS = 0.02  # a waiting request queries Redis again after this time
_SHARE_AHEAD = 200  # see RedisStore.ahead
_OTHERS_HOLD_IT = -1  # the outcome of a request that must wait, from windows.lua


@dataclass(slots=True)
class _Request:
    """A request that waits for Redis."""

    cost: int
    deadline: float
    answer: "asyncio.Future[Decision]"


@dataclass(slots=True, eq=False)
class _Caller:
    """The work for Redis for one caller, and what this process has reserved for it there."""

    waiting: list[_Request] = field(default_factory=list)
    used: int = 0
    """Units that were used and that Redis has not counted yet."""
    in_flight: int = 0
    """Units of requests in progress."""
    held: int = 0
    """The size of the lease."""
    until: float = 0.0
    """The time until which `held` counts."""
    busy: bool = False
    """True while a task sends the work. New requests then wait for it: they came later."""
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request of this process has given its units back."""


class RedisStore:
    """The units of all callers under one limit. See `Store` for the contract.

    Owned by one event loop. With `reserves`, use `reserve` and `release` in place of `take`. With
    `has_burst`, the first rate is exceeded by the last request that it allows.
    """

    def __init__(
        self,
        redis: RedisConnection,
        kind: str,
        rates: tuple[Rate, ...],
        *,
        reserves: bool = False,
        has_burst: bool = False,
    ) -> None:
        self._redis = redis
        self._kind = kind
        self._rates = rates
        self._reserves = reserves
        self._has_burst = has_burst
        # A lease may exceed the requests in progress by up to twice this much, 1/100 of the limit.
        # So most requests need no call to Redis, and enough is left for other processes.
        self._ahead = min((rate.amount for rate in rates), default=0) // _SHARE_AHEAD
        self._name = secrets.token_hex(8)  # of the leases of this process
        self._callers: dict[str, _Caller] = {}
        self.blocks: OrderedDict[str, tuple[int, float]] = OrderedDict()

    async def take(self, who: str, cost: int) -> Decision:
        """Consume units. Raises StoreAwayError."""
        return await self._ask(who, self._caller(who), cost)

    def count(self, who: str, units: int) -> None:
        """Count units in the background. Do nothing if Redis is unavailable."""
        caller = self._caller(who)
        caller.used += units
        self._send(who, caller)

    def blocked(self, who: str) -> Block | None:
        """Return the rate under which nothing was left, when Redis last told it."""
        if who not in self.blocks:
            return None
        number, until = self.blocks[who]
        wait = math.ceil(until - time.monotonic())
        return Block(number, wait) if wait > 0 else None

    async def reserve(self, who: str, cost: int) -> Block | None:
        """Reserve the units of a request; wait up to 10 seconds if other processes hold the rest.

        Return None if they are reserved; then `release` must follow. Else return the rate that
        refuses. A request is granted if anything is left, even if it costs more than that. Raises
        StoreAwayError.
        """
        caller = self._caller(who)
        # Fast path without Redis.
        has_room = time.monotonic() < caller.until and caller.in_flight + cost <= caller.held
        if has_room and not caller.busy:
            caller.in_flight += cost
            return None
        _, block = await self._ask(who, caller, cost)
        return block

    def release(self, who: str, cost: int, failed: int = 0) -> None:
        """Give back the units of a request, of which `failed` were used."""
        caller = self._caller(who)
        caller.in_flight = max(0, caller.in_flight - cost)
        caller.used += failed
        caller.freed.set()
        self._send(who, caller)

    async def _ask(self, who: str, caller: _Caller, cost: int) -> Decision:
        if not self._redis.available:
            raise StoreAwayError
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        request = _Request(cost, time.monotonic() + WAIT_SECONDS, answer)
        caller.waiting.append(request)
        self._send(who, caller)
        try:
            return await answer
        except asyncio.CancelledError:
            # The answer may have come just before: then the units are reserved already.
            if self._reserves and _is_granted(answer):
                self.release(who, cost)
            raise

    def _send(self, who: str, caller: _Caller) -> None:
        if not self._redis.available:
            caller.used = 0  # memory has counted them
        elif not caller.busy and self._has_work(caller):
            caller.busy = True
            self._redis.spawn(self._serve(who, caller))

    def _has_work(self, caller: _Caller) -> bool:
        surplus = caller.held - caller.in_flight if self._reserves else 0
        return bool(caller.waiting or caller.used) or surplus > 2 * self._ahead

    async def _serve(self, who: str, caller: _Caller) -> None:
        """Send the work of one caller to Redis, all of it together, until none is left."""
        try:
            while self._has_work(caller):
                caller.freed.clear()
                if not await self._converse(who, caller):
                    # Other processes hold what is left, and no message says when they release it.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await caller.freed.wait()
        except StoreAwayError:
            pass
        finally:
            # There is no await between the check of the loop and these lines, so no request gets
            # lost. If Redis is away or this task was cancelled, those that still wait fail.
            caller.busy = False
            caller.used = 0
            for request in caller.waiting:
                if not request.answer.done():
                    request.answer.set_exception(StoreAwayError())
            caller.waiting.clear()
            if not caller.held and not caller.in_flight:
                self._callers.pop(who, None)

    async def _converse(self, who: str, caller: _Caller) -> bool:
        """Call the script once and answer the requests that it decides.

        Return False if other processes hold what a request waits for. Raises StoreAwayError.
        """
        caller.waiting = [each for each in caller.waiting if not each.answer.done()]
        asked = tuple(caller.waiting)
        used, caller.used = caller.used, 0
        # The clock is read before the call, so that the lease ends here before it does in Redis.
        until = time.monotonic() + HOLD_SECONDS / 2
        ask: dict[str, object] = {
            "rates": self._rates,
            "has_burst": self._has_burst,
            "used": used,
            "costs": [each.cost for each in asked],
        }
        if self._reserves:
            ask["lease"] = {
                "process": self._name,
                "in_flight": caller.in_flight,
                "ahead": self._ahead,
                "seconds": HOLD_SECONDS,
            }
        outcomes, windows, held = await self._redis.run(f"{self._kind}/{who}", ask)
        usages = [Usage(previous, current, left / 1_000) for previous, current, left in windows]
        caller.held, caller.until = held, until
        if used or self._reserves:
            self._note_block(who, usages)
        undecided = []
        for request, outcome in zip(asked, outcomes, strict=True):
            if outcome == _OTHERS_HOLD_IT and time.monotonic() < request.deadline:
                undecided.append(request)
            elif not request.answer.done():  # else its caller has left
                caller.in_flight += request.cost if outcome == 0 and self._reserves else 0
                request.answer.set_result(self._decision(request.cost, outcome, usages))
        caller.waiting[: len(asked)] = undecided
        return not undecided

    def _decision(self, cost: int, outcome: int, usages: Sequence[Usage]) -> Decision:
        left = tuple(map(left_of, self._rates, usages))
        if outcome == 0:
            return left, None
        if outcome == _OTHERS_HOLD_IT:
            return left, Block(0, 1)
        needed = 1 if self._reserves else cost
        block = find_block(self._rates, tuple(usages), needed, has_burst=self._has_burst)
        return left, block or Block(outcome - 1, 1)

    def _note_block(self, who: str, usages: Sequence[Usage]) -> None:
        waits = [seconds_until(*each, 1) for each in zip(self._rates, usages, strict=True)]
        self.blocks.pop(who, None)
        if wait := max(waits):
            self.blocks[who] = (waits.index(wait), time.monotonic() + wait)
            if len(self.blocks) > MOST_CALLERS:
                self.blocks.popitem(last=False)

    def _caller(self, who: str) -> _Caller:
        caller = self._callers.get(who)
        if caller is None:
            if len(self._callers) >= MOST_CALLERS:
                # Drop those of the oldest two that no request uses.
                for oldest, each in list(islice(self._callers.items(), 2)):
                    if not each.in_flight and not each.busy:
                        del self._callers[oldest]
            caller = self._callers[who] = _Caller()
        return caller


def _is_granted(answer: "asyncio.Future[Decision]") -> bool:
    if not answer.done() or answer.cancelled() or answer.exception() is not None:
        return False
    return answer.result()[1] is None
