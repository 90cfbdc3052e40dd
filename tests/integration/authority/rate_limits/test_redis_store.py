"""Rate limits that processes share in a real Redis, and what happens while it is away.

Two `RateLimits` on one event loop stand for two processes: each has windows and connections of its
own.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.rate_limits import redis_connection, redis_store
from birthmark_sma.authority.rate_limits.limiter import RateLimits
from birthmark_sma.authority.rate_limits.limits import Kind
from birthmark_sma.authority.rate_limits.redis_connection import RedisConnection, StoreFigures
from birthmark_sma.authority.rate_limits.redis_store import RedisStore
from birthmark_sma.errors import RateLimitedError
from birthmark_sma.rates import parse_rates
from tests.support.databases.redis import Redis
from tests.support.programs.running import frozen

PATIENCE = 10.0
ANSWER_SECONDS = redis_connection.ANSWER_SECONDS


@pytest.fixture(autouse=True)
def patient_and_probed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find a store again within a moment, and lose none that a busy machine stops for a second."""
    monkeypatch.setattr(redis_connection, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(redis_connection, "ANSWER_SECONDS", PATIENCE)


@pytest.fixture
def caller() -> Caller:
    """Somebody whom no other test counts."""
    return Caller(f"address {secrets.token_hex(8)}")


@asynccontextmanager
async def process(url: str, **texts: str) -> AsyncIterator[RateLimits]:
    """The limits of a process that has started."""
    rates = {Kind(kind): parse_rates(text) for kind, text in texts.items()}
    limits = RateLimits(rates, RedisConnection(SecretStr(url)))
    await limits.start()
    try:
        yield limits
    finally:
        await limits.close()


async def passes(limits: RateLimits, caller: Caller, cost: int = 1) -> bool:
    """Whether a request passes, asked as the server asks."""
    try:
        limits.take(Kind.VALIDATE, caller, cost)
    except RateLimitedError:
        return False
    if limits.shared:
        _, refusal = await limits.confirm(Kind.VALIDATE, caller, cost)
        return refusal is None
    return True


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("cost", [1, 7])
async def test_two_processes_count_together(redis: Redis, caller: Caller, cost: int) -> None:
    """Threat 23: however many ask at once, no more pass than the limit, and as many as fit."""
    async with (
        process(redis.url, validate="100/hour") as one,
        process(redis.url, validate="100/hour") as two,
    ):
        asked = [passes(each, caller, cost) for _ in range(150) for each in (one, two)]
        passed = sum(await asyncio.gather(*asked))
        assert passed == 100 // cost
        assert not await passes(one, caller, cost)
        assert not await passes(two, caller, cost)
        assert two.figures.refused[Kind.VALIDATE] > 0


async def test_many_callers_at_once(redis: Redis) -> None:
    """Each has its own count, and nobody waits for long."""
    async with process(redis.url, validate="2/hour") as limits:
        callers = [Caller(f"many {secrets.token_hex(8)}") for _ in range(200)]
        asked = [passes(limits, each) for _ in range(3) for each in callers]
        assert sum(await asyncio.gather(*asked)) == 400
        assert limits.figures.store.times_lost == 0


async def test_a_pause_of_the_event_loop_is_not_the_stores_fault(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine stops this process for longer than Redis is given to answer."""
    monkeypatch.setattr(redis_connection, "ANSWER_SECONDS", 0.4)
    async with process(redis.url, validate="10/hour") as limits:
        for turns in range(12):  # in one of them a question is under way
            asked = asyncio.ensure_future(passes(limits, Caller(secrets.token_hex(8))))
            for _ in range(turns):
                await asyncio.sleep(0)
            time.sleep(0.6)
            assert await asked
        assert limits.figures.store.times_lost == 0


async def test_what_is_left_is_what_all_have_left(redis: Redis, caller: Caller) -> None:
    async with (
        process(redis.url, validate="10/hour") as one,
        process(redis.url, validate="10/hour") as two,
    ):
        for _ in range(3):
            assert await passes(one, caller)
        two.take(Kind.VALIDATE, caller)
        quotas, refusal = await two.confirm(Kind.VALIDATE, caller)
        assert refusal is None
        assert [(quota.policy, quota.remaining) for quota in quotas] == [("validate", 6)]


async def test_what_the_store_refuses_does_not_count_in_memory(
    redis: Redis, caller: Caller
) -> None:
    """Or a caller would be held back by what it never had."""
    async with (
        process(redis.url, validate="10/hour") as one,
        process(redis.url, validate="10/hour") as two,
    ):
        for _ in range(10):
            assert await passes(one, caller)
        for _ in range(5):
            assert not await passes(two, caller)
        assert two.quotas(Kind.VALIDATE, caller)[0].remaining == 10


async def test_what_a_later_limit_refuses_counts_in_no_earlier_one(
    redis: Redis, caller: Caller
) -> None:
    """As in memory: two limits, of which the second refuses in the shared store alone."""
    rates = "20/hour; 5/day"
    connection, who = RedisConnection(SecretStr(redis.url)), caller.partition
    await connection.start()
    windows = RedisStore(connection, "validate", parse_rates(rates))
    async with (
        process(redis.url, validate=rates) as one,
        process(redis.url, validate=rates) as two,
    ):
        assert await passes(one, caller, 4)
        for _ in range(6):
            two.take(Kind.VALIDATE, caller, 2)
            quotas, refusal = await two.confirm(Kind.VALIDATE, caller, 2)
            assert refusal is not None
            assert refusal.policy == "validate-86400s"
            assert [quota.remaining for quota in quotas] == [16, 1]
            left, _ = await windows.take(who, 0)
            assert [units for units, _ in left] == [16, 1]
        assert await passes(two, caller)
        two.take(Kind.VALIDATE, caller, 1)
        quotas, _ = await two.confirm(Kind.VALIDATE, caller, 1)
        assert [quota.remaining for quota in quotas] == [15, 0]
    await connection.close()


async def test_failures_are_known_to_all(redis: Redis, caller: Caller) -> None:
    """Whichever process gave them; also more at once than the limit has."""
    async with (
        process(redis.url, failures="5/hour", validate="100/hour") as one,
        process(redis.url, failures="5/hour", validate="100/hour") as two,
    ):
        assert await passes(two, caller)
        two.release(Kind.VALIDATE, caller, 1)
        for failed in (3, 40):
            assert await passes(one, caller, 40)
            one.release(Kind.VALIDATE, caller, 40, failed)
            await asyncio.sleep(0.1)
        assert not await passes(two, caller)
        assert not await passes(one, caller)
        told = two.quotas(Kind.VALIDATE, caller)[0]
        assert (told.policy, told.remaining) == ("failures", 0)
        assert told.more_in > 60


@pytest.mark.parametrize("failed", [200, 0], ids=["FAIL", "PASS"])
async def test_what_is_under_way_is_reserved(redis: Redis, caller: Caller, failed: int) -> None:
    """Threat 36: of 40 requests at once in two processes, one overdraws; genuine ones all pass."""
    judged = 0

    async def request(limits: RateLimits) -> None:
        nonlocal judged
        if await passes(limits, caller, 200):
            await asyncio.sleep(0.01)
            judged += 1
            limits.release(Kind.VALIDATE, caller, 200, failed)

    async with (
        process(redis.url, failures="10/hour") as one,
        process(redis.url, failures="10/hour") as two,
    ):
        await asyncio.gather(*[request(each) for _ in range(20) for each in (one, two)])
        assert judged == (1 if failed else 40)
        assert await passes(one, caller, 1) is not bool(failed)


def scripts_run(redis: Redis) -> int:
    """How often a reservation was asked for."""
    statistics: Any = redis.ask("INFO", "commandstats")
    calls: int = statistics["cmdstat_evalsha"]["calls"]
    return calls


async def test_a_wide_limit_is_reserved_ahead(redis: Redis, caller: Caller) -> None:
    """Most requests ask nothing, and what is reserved ahead leaves room for other processes."""
    async with (
        process(redis.url, failures="6000/minute") as one,
        process(redis.url, failures="6000/minute") as two,
    ):
        for limits in (one, two):
            assert await passes(limits, caller)
            limits.release(Kind.VALIDATE, caller, 1)
        before = scripts_run(redis)
        for _ in range(200):
            assert await passes(one, caller)
            one.release(Kind.VALIDATE, caller, 1)
        assert scripts_run(redis) == before


async def test_two_limits_are_reserved_apart(redis: Redis, caller: Caller) -> None:
    """What is reserved ahead under a wide limit takes no room from a narrow one."""
    async with (
        process(redis.url, failures="10/hour; 2000/day") as one,
        process(redis.url, failures="10/hour; 2000/day") as two,
    ):
        assert await passes(one, caller)
        async with asyncio.timeout(5):  # two would wait until one gives back what it reserved
            assert await passes(two, caller)


@pytest.mark.parametrize("step", [0, 1])
async def test_whoever_leaves_while_the_store_is_asked_holds_nothing(
    redis: Redis, caller: Caller, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 36: a request that is cancelled at any step gives back what it had reserved."""
    answered: list[asyncio.Event] = []

    def held_up(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def asked(*arguments: object) -> Any:
            answer = await ask(*arguments)
            answered.append(asyncio.Event())
            if len(answered) <= step + 1:
                await answered[-1].wait()
            return answer

        return asked

    async with process(
        redis.url, failures="10/hour; 20/day", validate="1000/second; 1000/hour"
    ) as limits:
        with monkeypatch.context() as patch:
            patch.setattr(RedisConnection, "run", held_up(RedisConnection.run))
            request = asyncio.ensure_future(passes(limits, caller, 200))
            for reached in range(step + 1):
                await until(lambda reached=reached: len(answered) > reached)  # type: ignore[misc]
                if reached < step:
                    answered[reached].set()
            request.cancel()
            await asyncio.wait([request])
            assert request.cancelled()
            answered[step].set()
        async with asyncio.timeout(2):
            assert await passes(limits, caller, 1)


async def test_the_reservation_of_a_killed_process_lapses(
    redis: Redis, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 36: nobody is held back for ever by what is never given back."""
    monkeypatch.setattr(redis_store, "HOLD_SECONDS", 2)
    async with process(redis.url, failures="10/hour") as limits:
        async with process(redis.url, failures="10/hour") as killed:
            assert await passes(killed, caller, 200)
        began = time.monotonic()
        assert await passes(limits, caller, 200)
        assert 1 < time.monotonic() - began < 5


async def test_guesses_are_known_to_all(redis: Redis, caller: Caller) -> None:
    """A process learns with a guess of its own that others had enough of them."""
    async with (
        process(redis.url, guesses="5/hour") as one,
        process(redis.url, guesses="5/hour") as two,
    ):
        for _ in range(5):
            one.record_failed_auth(caller.address)
        await asyncio.sleep(0.2)
        two.record_failed_auth(caller.address)
        await asyncio.sleep(0.2)
        with pytest.raises(RateLimitedError):
            two.record_failed_auth(caller.address)


async def test_when_it_is_killed_each_counts_by_itself(
    own_redis: Redis, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """And again together when it is back; the log has one line for each."""
    async with (
        process(own_redis.url, validate="10/hour") as one,
        process(own_redis.url, validate="10/hour") as two,
    ):
        assert [await passes(one, caller) for _ in range(4)] == [True] * 4
        own_redis.kill()
        assert sum([await passes(one, caller) for _ in range(20)]) == 6
        assert sum([await passes(two, caller) for _ in range(20)]) == 10
        assert not one.shared
        assert one.figures.store == StoreFigures(away=True, times_lost=1)
        await asyncio.sleep(0.5)
        own_redis.start()
        await until(lambda: one.shared and two.shared)
        assert one.figures.store == StoreFigures(away=False, times_lost=1)
        other = Caller("somebody else")
        assert sum([await passes(one, other) for _ in range(10)]) == 10
        assert not await passes(two, other)
    assert [record.getMessage() for record in caplog.records].count(
        "The store for rate limits answers again: processes count together"
    ) == 2
    assert len(caplog.records) == 4
    assert "cannot be reached: until it answers, each server counts by itself" in caplog.text
    assert own_redis.password not in caplog.text


async def _hang(own_redis: Redis, caller: Caller) -> float:
    """Let Redis hang; return for how long 100 requests at once waited, in seconds."""
    async with process(
        own_redis.url, validate="1000/second; 1000/hour", failures="100/hour"
    ) as limits:
        assert await passes(limits, caller)
        with frozen([own_redis.pid]):
            began = time.monotonic()
            callers = [Caller(f"{number}") for number in range(100)]
            assert all(await asyncio.gather(*[passes(limits, each) for each in callers]))
            waited = time.monotonic() - began
            assert not limits.shared
            began = time.monotonic()
            assert all([await passes(limits, caller) for _ in range(100)])
            assert time.monotonic() - began < 1
        await until(lambda: limits.shared)
    return waited


async def test_when_it_hangs_nobody_waits_for_long(
    own_redis: Redis, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a quarter of a second, and then not at all. One of three times the machine is idle."""
    monkeypatch.setattr(redis_connection, "ANSWER_SECONDS", ANSWER_SECONDS)
    waited = [await _hang(own_redis, caller) for _ in range(3)]
    assert min(waited) < 1


async def _fault_at_start(url: str, caller: Caller) -> None:
    began = time.monotonic()
    async with process(url, validate="5/hour") as limits:
        assert time.monotonic() - began < 2
        assert not limits.shared
        assert limits.figures.store.away
        assert sum([await passes(limits, caller) for _ in range(10)]) == 5


async def test_when_it_is_not_there_at_the_start(
    own_redis: Redis, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.kill()
    await _fault_at_start(own_redis.url, caller)
    assert "cannot be reached" in caplog.text


async def test_when_it_refuses_the_password(
    redis: Redis, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """Threat 28: and neither the right one nor the wrong one is in the log."""
    wrong = redis.url.replace(redis.password, "another-password")
    await _fault_at_start(wrong, caller)
    assert "refuses the name or password in SMA_RATE_STORE" in caplog.text
    assert "another-password" not in caplog.text


async def test_when_it_can_only_be_read(
    own_redis: Redis, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """A replica answers every question, and counts nothing."""
    own_redis.ask("REPLICAOF", "127.0.0.1", 1)
    await _fault_at_start(own_redis.url, caller)
    assert "can only be read" in caplog.text


async def test_when_it_becomes_full(own_redis: Redis, caller: Caller) -> None:
    """Out of memory is an error like any other."""
    async with process(own_redis.url, validate="5/hour") as limits:
        own_redis.ask("CONFIG", "SET", "maxmemory", 1)
        assert sum([await passes(limits, caller) for _ in range(10)]) == 5
        assert not limits.shared
        own_redis.ask("CONFIG", "SET", "maxmemory", 0)
        await until(lambda: limits.shared)


@pytest.mark.parametrize("end", ["/0?socket_timeout=soon", "/0?no_such_option=1", "/none"])
async def test_when_its_url_makes_little_sense(redis: Redis, caller: Caller, end: str) -> None:
    """No URL keeps a server from starting, or from answering."""
    async with process(redis.url.removesuffix("/0") + end, validate="5/hour") as limits:
        assert sum([await passes(limits, caller) for _ in range(10)]) == 5


async def test_when_something_else_answers(caller: Caller) -> None:
    """What speaks another protocol is as good as away."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await _fault_at_start(f"redis://127.0.0.1:{port}", caller)


async def test_a_clock_that_is_set_moves_no_shared_window(
    redis: Redis, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 23: Redis counts by its own clock."""
    async with process(redis.url, validate="10/hour") as limits:
        assert await passes(limits, caller)
        now = time.time()
        for jump in (-1e8, 1e8):
            monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
            assert await passes(limits, caller)
            quotas, _ = await limits.confirm(Kind.VALIDATE, caller, 1)
        assert quotas[0].remaining == 5


async def test_its_keys_go_by_themselves(own_redis: Redis, caller: Caller) -> None:
    """Nothing stays in Redis for ever, and no key holds a secret."""
    async with process(own_redis.url, validate="10/second", failures="5/minute") as limits:
        assert await passes(limits, caller, 3)
        assert await passes(limits, caller, 2)
        limits.release(Kind.VALIDATE, caller, 3, failed=1)
        await asyncio.sleep(0.2)
    keys = own_redis.ask("KEYS", "*")
    assert isinstance(keys, list)
    assert len(keys) >= 3
    for key in keys:
        lives = own_redis.ask("PTTL", key)
        assert isinstance(lives, int)
        assert 0 < lives <= 120_000


async def test_processes_share_a_burst(redis: Redis, caller: Caller) -> None:
    """As one process does: a batch may exceed it, and is paid for afterwards."""
    async with (
        process(redis.url, validate="30000/hour") as one,
        process(redis.url, validate="30000/hour") as two,
    ):
        assert await passes(one, caller, 2_900)
        assert await passes(two, caller, 1_000)
        assert not await passes(one, caller)
        with pytest.raises(RateLimitedError, match="30001 camera tokens at once can never pass"):
            one.take(Kind.VALIDATE, caller, 30_001)
        quotas, refusal = await two.confirm(Kind.VALIDATE, caller, 30_001)
        assert refusal is not None
        assert refusal.policy == "validate"
        assert [quota.remaining for quota in quotas] == [0, 30_000 - 3_900]
