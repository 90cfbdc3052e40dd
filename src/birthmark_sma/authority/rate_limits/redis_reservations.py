"""Camera tokens under way, of which each may yet FAIL: what processes reserve in one Redis.

A process holds one amount for each caller, which lapses by itself where the process is killed. It
asks for more than a request needs where the limit is wide, so that most requests need not ask. Who
finds all that is left reserved by others waits for them.
"""

import asyncio
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from birthmark_sma.authority.rate_limits.memory_store import (
    MOST_CALLERS,
    remaining,
    seconds_until,
)
from birthmark_sma.authority.rate_limits.redis_store import SharedWindows, StoreAwayError
from birthmark_sma.rates import Rate

HOLD_SECONDS = 60
"""After how long a reservation lapses that nobody renews. A process relies on it for half that."""

WAIT_SECONDS = 10.0
_LOOK_SECONDS = 0.02
_SHARE_AHEAD = 100  # up to a hundredth of a limit is reserved ahead of requests
_ANY_ROOM = 1 << 40

RESERVE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local others = 0
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
    if all[at] ~= ARGV[1] then
        local amount, lapses = string.match(all[at + 1], '(%d+):(%d+)')
        if tonumber(lapses) < now then
            redis.call('HDEL', KEYS[1], all[at])
        else
            others = others + tonumber(amount)
        end
    end
end
local granted = others < tonumber(ARGV[4])
local amount = granted and ARGV[2] or ARGV[3]
if amount == '0' then
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    redis.call('HSET', KEYS[1], ARGV[1], string.format('%s:%d', amount, now + ARGV[5] * 1000))
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
return granted and others or -1
"""
"""Reserve an amount where others leave room, else a smaller one; return what others hold, or -1.

Arguments: who, the amount, the smaller one, the room, seconds until it lapses."""


@dataclass(slots=True)
class _Lease:
    """The amount that this process holds for one caller. Only who has the turn asks for more."""

    ahead: int
    in_flight: int = 0
    held: int = 0
    until: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    def has_room(self, cost: int, now: float) -> bool:
        return now < self.until and self.in_flight + cost <= self.held

    def free(self, cost: int) -> None:
        self.in_flight = max(0, self.in_flight - cost)
        self.freed.set()


class SharedReservations:
    """The reservations of this process. Owned by one event loop."""

    def __init__(self, store: SharedWindows) -> None:
        self._store = store
        self._name = secrets.token_hex(8)
        self._leases: dict[tuple[str, Rate], _Lease] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def reserve(self, key: str, rate: Rate, cost: int) -> int | None:
        """Wait until a request may be judged; where it may not, return in how many seconds.

        A request may be judged if anything is left, whatever it costs. `release` must follow.
        Raises StoreAwayError.
        """
        lease = self._lease_of(key, rate)
        clock = asyncio.get_running_loop().time
        if not lease.turn.locked() and lease.has_room(cost, clock()):
            lease.in_flight += cost
            return None
        deadline = clock() + WAIT_SECONDS
        async with lease.turn:
            while not lease.has_room(cost, clock()):
                lease.freed.clear()
                wait = await self._ask(lease, key, rate, cost)
                if wait is not None:
                    return wait
                if not lease.has_room(cost, clock()):
                    if clock() > deadline:
                        return 1
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await lease.freed.wait()
            lease.in_flight += cost
        return None

    def release(self, key: str, rate: Rate, cost: int, failed: int) -> None:
        """Give back what a request reserved, once its FAILs are counted in the store."""
        lease = self._lease_of(key, rate)
        if failed:
            lease.until = 0.0
            self._run(self._count_and_free(lease, key, rate, cost, failed))
        else:
            lease.free(cost)
            self._give_back(lease, key, rate)

    async def close(self) -> None:
        """Finish what is being told."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, lease: _Lease, key: str, rate: Rate, cost: int) -> int | None:
        """Ask for room once. Returns after how many seconds to come back where nothing is left."""
        usage = await self._store.usage(key, rate)
        left = remaining(rate, usage)
        if not left:
            return seconds_until(rate, usage, 1)
        amount = lease.in_flight + cost + lease.ahead
        others = await self._hold(lease, key, amount, left - lease.in_flight)
        if others is None:
            return None
        # FAILs are counted before their reservation is given back: they are in one of the two.
        usage = await self._store.usage(key, rate)
        if remaining(rate, usage) - others - lease.in_flight <= 0:
            await self._hold(lease, key, lease.in_flight, _ANY_ROOM)
        return None

    async def _hold(self, lease: _Lease, key: str, amount: int, room: int) -> int | None:
        """Hold an amount where others leave room; return what these hold, or None."""
        until = asyncio.get_running_loop().time() + HOLD_SECONDS / 2
        least = lease.in_flight
        others = await self._store.run(
            RESERVE, f"{key}/reserved", self._name, amount, least, room, HOLD_SECONDS
        )
        lease.held, lease.until = (least, until) if others < 0 else (amount, until)
        return None if others < 0 else others

    async def _count_and_free(
        self, lease: _Lease, key: str, rate: Rate, cost: int, failed: int
    ) -> None:
        try:
            await self._store.fill(key, rate, failed)
        except StoreAwayError:
            pass  # this process counted them as well
        finally:
            lease.free(cost)
        self._give_back(lease, key, rate)

    def _give_back(self, lease: _Lease, key: str, rate: Rate) -> None:
        if lease.held - lease.in_flight > lease.ahead and not lease.turn.locked():
            self._run(self._shrink(lease, key, rate))

    async def _shrink(self, lease: _Lease, key: str, rate: Rate) -> None:
        with suppress(StoreAwayError):
            async with lease.turn:
                if lease.held - lease.in_flight > lease.ahead:
                    await self._hold(lease, key, lease.in_flight + lease.ahead, _ANY_ROOM)
        if lease.held == 0 and not lease.turn.locked():
            self._leases.pop((key, rate), None)

    def _lease_of(self, key: str, rate: Rate) -> _Lease:
        lease = self._leases.get((key, rate))
        if lease is None:
            self._make_room()
            lease = self._leases[key, rate] = _Lease(rate.amount // _SHARE_AHEAD)
        return lease

    def _make_room(self) -> None:
        """Forget two callers for whom nothing is under way, where there are too many."""
        if len(self._leases) >= MOST_CALLERS:
            oldest = list(islice(self._leases.items(), 2))
            for place, lease in oldest:
                if not lease.in_flight and not lease.turn.locked():
                    del self._leases[place]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
