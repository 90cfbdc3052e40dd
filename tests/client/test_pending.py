"""Bundles without a verdict: asked about again, each after its pause, until there is one."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from birthmark_sma.client import (
    AsyncAuthorityClient,
    AuthorityClient,
    Cause,
    Fail,
    Indeterminate,
    Options,
    Pass,
    PendingBundles,
    VerifiedBundle,
)
from birthmark_sma.client.pending import LONGEST_PAUSE_SECONDS, LONGEST_RETRY_AFTER_SECONDS
from birthmark_sma.errors import ClientMisuseError, TooManyPendingError
from tests.support.http.faulty_server import (
    FAILED,
    PASSED,
    FaultyServer,
    Visit,
    all_pass,
)
from tests.support.http.validation_calls import some_token

AWAY = Indeterminate(Cause.UNAVAILABLE, "Away.")
ONCE = Options(attempts=1, deadline=5, circuit_failures=1_000)


class Time:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    """The clock by which pauses are over."""
    return Time()


@pytest.fixture
def pending(time: Time) -> PendingBundles:
    """An empty queue for four."""
    return PendingBundles(4, seconds=time, chance=lambda: 1.0)


def bundle(number: int, device_serial: str = "camera-1") -> VerifiedBundle:
    """A bundle that was verified; its camera token's table is its number."""
    return VerifiedBundle(
        bundle_id=bytes([number]) * 32,
        device_serial=device_serial,
        certificate_serial=1,
        image_hash=bytes(32),
        camera_token=replace(some_token(), table_id=number),
        captured_at=datetime.now(UTC),
    )


Asking = Callable[[PendingBundles, str], Any]


def in_threads(pending: PendingBundles, url: str) -> Any:
    with AuthorityClient(url, options=ONCE) as authority:
        return pending.ask(authority)


def in_tasks(pending: PendingBundles, url: str) -> Any:
    async def ask() -> Any:
        async with AsyncAuthorityClient(url, options=ONCE) as authority:
            return await pending.ask_async(authority)

    return asyncio.run(ask())


@pytest.fixture(params=[in_threads, in_tasks])
def ask(request: pytest.FixtureRequest) -> Asking:
    """Each way to ask in turn."""
    found: Asking = request.param
    return found


def by_table(**results: Any) -> Callable[[Visit], None]:
    """Answer for each camera token by its table: PASS unless another result is given."""

    def behave(visit: Visit) -> None:
        found = [results.get(f"table_{each['table_id']}", PASSED) for each in visit.tokens]
        visit.answer({"results": found})

    return behave


def test_what_is_settled_is_returned_and_forgotten(
    pending: PendingBundles, time: Time, ask: Asking
) -> None:
    """Threat 19: only what has a verdict, or can never have one."""
    bundles = [bundle(number) for number in range(1, 5)]
    for each in bundles:
        pending.add(each, AWAY)
    answers = by_table(table_2=FAILED, table_3={"error": "Once each."}, table_4={})
    with FaultyServer(answers) as server:
        assert ask(pending, server.url) == []
        assert server.visits == []
        time.now += 1
        settled = ask(pending, server.url)
        assert len(server.visits) == 1
    assert [each for each, _ in settled] == bundles[:3]
    assert [type(outcome) for _, outcome in settled] == [Pass, Fail, Indeterminate]
    assert settled[2][1].cause is Cause.ALREADY_SUBMITTED
    [(left, outcome)] = pending.bundles()
    assert (len(pending), left, outcome.cause) == (1, bundles[3], Cause.NOT_UNDERSTOOD)


def test_a_token_of_another_device_fails(pending: PendingBundles, time: Time, ask: Asking) -> None:
    """As it does where it is asked about at once."""
    pending.add(bundle(1, "camera-2"), AWAY)
    time.now += 1
    with FaultyServer(all_pass) as server:
        [(_, outcome)] = ask(pending, server.url)
    assert isinstance(outcome, Fail)
    assert outcome.error is not None


def test_pauses_grow_up_to_a_bound(pending: PendingBundles, time: Time) -> None:
    pending.add(bundle(1), AWAY)
    waits = []
    with (
        FaultyServer(lambda visit: visit.answer({}, 503)) as server,
        AuthorityClient(server.url, options=ONCE) as authority,
    ):
        for _ in range(12):
            wait = pending.seconds_to_next_attempt
            assert wait
            waits.append(wait)
            time.now += wait
            assert pending.ask(authority) == []
        assert len(server.visits) == 12
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == LONGEST_PAUSE_SECONDS


@pytest.mark.parametrize(
    ("outcome", "wait"),
    [
        (Indeterminate(Cause.RATE_LIMITED, "Limited.", retry_after=40), 40),
        (Indeterminate(Cause.RATE_LIMITED, "Limited.", retry_after=0.1), 1),
        (Indeterminate(Cause.UNAVAILABLE, "Away.", retry_after=1e9), LONGEST_RETRY_AFTER_SECONDS),
        (Indeterminate(Cause.NOT_ALLOWED, "A wrong key."), LONGEST_PAUSE_SECONDS),
    ],
)
def test_the_first_pause(pending: PendingBundles, outcome: Indeterminate, wait: float) -> None:
    """As long as the authority asks for; long where somebody has to mend something first."""
    pending.add(bundle(1), outcome)
    assert pending.seconds_to_next_attempt == wait


def test_half_of_a_pause_is_chance(time: Time) -> None:
    pending = PendingBundles(seconds=time, chance=lambda: 0.0)
    pending.add(bundle(1), AWAY)
    assert pending.seconds_to_next_attempt == 0.5


def test_it_is_bounded_and_has_each_bundle_once(pending: PendingBundles) -> None:
    for number in (1, 2, 3, 4, 4, 1):
        pending.add(bundle(number), AWAY)
    assert len(pending) == 4
    with pytest.raises(TooManyPendingError):
        pending.add(bundle(5), AWAY)
    with pytest.raises(TypeError, match="is a verdict"):
        pending.add(bundle(6), Pass("SimulatedMfg", datetime.now(UTC)))  # type: ignore[arg-type]


def test_a_call_asks_about_so_many(pending: PendingBundles, time: Time) -> None:
    for number in range(1, 5):
        pending.add(bundle(number), AWAY)
        time.now += 0.1
    time.now += 1
    with FaultyServer(all_pass) as server, AuthorityClient(server.url) as authority:
        first = pending.ask(authority, at_most=3)
        assert [each.camera_token.table_id for each, _ in first] == [1, 2, 3]
        assert len(pending.ask(authority, at_most=3)) == 1
    assert pending.seconds_to_next_attempt is None


def test_nothing_is_lost_by_a_call_that_fails(pending: PendingBundles, time: Time) -> None:
    """A client that was closed, or a task that is cancelled."""
    pending.add(bundle(1), AWAY)
    time.now += 1
    closed = AuthorityClient("https://localhost")
    closed.close()
    with pytest.raises(ClientMisuseError):
        pending.ask(closed)
    assert len(pending) == 1
    time.now += 2

    async def cancel(url: str) -> None:
        async with AsyncAuthorityClient(url, options=ONCE) as authority:
            asking = asyncio.create_task(pending.ask_async(authority))
            await asyncio.sleep(0.1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    with FaultyServer(lambda visit: visit.wait()) as server:
        asyncio.run(cancel(server.url))
    assert len(pending) == 1
    time.now += 4
    with FaultyServer(all_pass) as server, AuthorityClient(server.url) as authority:
        assert len(pending.ask(authority)) == 1
