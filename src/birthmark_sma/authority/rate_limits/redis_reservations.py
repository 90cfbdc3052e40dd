"""Reservations in Redis for camera tokens in progress, each of which may still FAIL.

Used by `limiter`, so that several processes together cannot exceed a caller's limit of FAILs. Each
process holds one lease for each caller: a number of tokens, stored in a Redis hash, that expires by
itself if the process is killed. The lease is larger than a request needs if the limit is large, so
that most requests need no call to Redis. If other processes have reserved all that is left, a
request waits for them, up to `WAIT_SECONDS`.
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
from birthmark_sma.authority.rate_limits.redis_store import (
    SharedWindows,
    StoreAwayError,
    window_name,
)
from birthmark_sma.rates import Rate

HOLD_SECONDS = 60
"""A lease expires in Redis after this time unless it is renewed. A process uses it for half of this
time only, so that it never relies on a lease that Redis has dropped."""

WAIT_SECONDS = 10.0
"""The longest that a request waits for tokens that other processes have reserved."""
_LOOK_SECONDS = 0.02  # a waiting request queries Redis again after this time
_SHARE_AHEAD = 100  # a lease holds up to 1/100 of the limit more than the requests in progress
_ANY_ROOM = 1 << 40  # more than any limit: the script then grants the amount in any case

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
"""Set the lease of a process, atomically, and delete the expired leases of others.

Set it to an amount if the other processes hold less than the room, else to a smaller amount. Return
how many tokens the others hold, or -1 if the smaller amount was set.

KEYS[1] is the hash of a caller: process name to "amount:expiry", in milliseconds of Redis's clock.
ARGV: [1] process name, [2] amount, [3] smaller amount, [4] room, [5] seconds until it expires. An
amount of 0 deletes the lease."""


@dataclass(slots=True)
class _Lease:
    """The tokens that this process has reserved for one caller under one rate.

    Owned by the event loop. `turn` serialises the calls to Redis for this lease.
    """

    ahead: int
    """The tokens to reserve in advance."""
    in_flight: int = 0
    """The tokens of requests in progress."""
    held: int = 0
    """The tokens that Redis has reserved."""
    until: float = 0.0
    """The time of the event loop's clock until which `held` counts."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request of this process gives its tokens back."""

    def has_room(self, cost: int, now: float) -> bool:
        return now < self.until and self.in_flight + cost <= self.held

    def free(self, cost: int) -> None:
        self.in_flight = max(0, self.in_flight - cost)
        self.freed.set()


class SharedReservations:
    """All leases of this process. Owned by one event loop."""

    def __init__(self, store: SharedWindows) -> None:
        self._store = store
        self._name = secrets.token_hex(8)
        self._leases: dict[tuple[str, Rate], _Lease] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def reserve(self, key: str, rate: Rate, cost: int) -> int | None:
        """Reserve the tokens of a request; wait up to 10 seconds if other processes hold the rest.

        Return None if they are reserved; then `release` must follow. Else return after how many
        seconds the caller may retry. A request is granted if anything is left of the limit, even if
        it has more tokens than that. Raises StoreAwayError.
        """
        lease = self._lease_of(key, rate)
        clock = asyncio.get_running_loop().time
        # Fast path without Redis. Not while another request has the turn: it came first.
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
                    # Other processes hold the rest, and no message says when they release it.
                    # Query again after a short time, or at once if this process releases some.
                    if clock() > deadline:
                        return 1
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS):
                            await lease.freed.wait()
            lease.in_flight += cost
        return None

    def release(self, key: str, rate: Rate, cost: int, failed: int) -> None:
        """Give back the tokens of a request, after its FAILs are counted in Redis."""
        lease = self._lease_of(key, rate)
        if failed:
            # The FAILs reduce what is left: the next request must query Redis again.
            lease.until = 0.0
            self._run(self._count_and_free(lease, key, rate, cost, failed))
        else:
            lease.free(cost)
            self._give_back(lease, key, rate)

    async def close(self) -> None:
        """Cancel the tasks that update Redis, and wait for them. Leases expire by themselves."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, lease: _Lease, key: str, rate: Rate, cost: int) -> int | None:
        """Try once to extend the lease by `cost` tokens.

        Return None, and the lease shows whether it was extended; or, if nothing is left of the
        limit, after how many seconds to retry. Raises StoreAwayError.
        """
        usage = await self._store.usage(key, rate)
        left = remaining(rate, usage)
        if not left:
            return seconds_until(rate, usage, 1)
        amount = lease.in_flight + cost + lease.ahead
        others = await self._hold(lease, key, rate, amount, left - lease.in_flight)
        if others is None:
            return None
        # Read the usage again. Another process counts its FAILs before it gives its reservation
        # back, so each FAIL is in `others` or in this usage, or in both. The usage from before the
        # reservation could lack FAILs that are not in `others` any more.
        usage = await self._store.usage(key, rate)
        if remaining(rate, usage) - others - lease.in_flight <= 0:
            await self._hold(lease, key, rate, lease.in_flight, _ANY_ROOM)
        return None

    async def _hold(
        self, lease: _Lease, key: str, rate: Rate, amount: int, room: int
    ) -> int | None:
        """Set the lease to an amount if the others hold less than `room`, else to `in_flight`.

        Return how many tokens the others hold, or None in the second case. Raises StoreAwayError.
        """
        # The clock is read before the call, so that the lease ends here before it does in Redis.
        until = asyncio.get_running_loop().time() + HOLD_SECONDS / 2
        least = lease.in_flight
        others = await self._store.run(
            RESERVE,
            f"{window_name(key, rate)}/reserved",
            self._name,
            amount,
            least,
            room,
            HOLD_SECONDS,
        )
        lease.held, lease.until = (least, until) if others < 0 else (amount, until)
        return None if others < 0 else others

    async def _count_and_free(
        self, lease: _Lease, key: str, rate: Rate, cost: int, failed: int
    ) -> None:
        try:
            await self._store.fill(key, rate, failed)
        except StoreAwayError:
            pass  # the FAILs are counted in the memory of this process as well
        finally:
            lease.free(cost)
        self._give_back(lease, key, rate)

    # Shrink a lease that is larger than necessary; if a request has the turn, that one sets it.
    def _give_back(self, lease: _Lease, key: str, rate: Rate) -> None:
        if lease.held - lease.in_flight > lease.ahead and not lease.turn.locked():
            self._run(self._shrink(lease, key, rate))

    async def _shrink(self, lease: _Lease, key: str, rate: Rate) -> None:
        with suppress(StoreAwayError):
            async with lease.turn:
                if lease.held - lease.in_flight > lease.ahead:
                    await self._hold(lease, key, rate, lease.in_flight + lease.ahead, _ANY_ROOM)
        if lease.held == 0 and not lease.turn.locked():
            self._leases.pop((key, rate), None)

    def _lease_of(self, key: str, rate: Rate) -> _Lease:
        lease = self._leases.get((key, rate))
        if lease is None:
            self._make_room()
            lease = self._leases[key, rate] = _Lease(rate.amount // _SHARE_AHEAD)
        return lease

    def _make_room(self) -> None:
        """If there are too many leases, drop those of the oldest two that no request uses."""
        if len(self._leases) >= MOST_CALLERS:
            oldest = list(islice(self._leases.items(), 2))
            for place, lease in oldest:
                if not lease.in_flight and not lease.turn.locked():
                    del self._leases[place]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        # The event loop has weak references to tasks only: this set keeps them alive.
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
