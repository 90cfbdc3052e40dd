"""A revocation list that is kept fresh: when it is fetched, and what replaces no good one."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, TypeAlias

import pytest

from birthmark_sma.client import AsyncCrlCache, CrlCache
from birthmark_sma.client.crls import cache
from birthmark_sma.client.crls.cache import CachedCrl
from birthmark_sma.errors import ConfigurationError, RevocationUnknownError
from tests.support.http.faulty_server import (
    Behaviour,
    FaultyServer,
    Visit,
)
from tests.support.http.ports import closed_port
from tests.support.programs.running import wait_until

HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class SomeList:
    """A list, as far as a cache looks into it."""

    number: int
    this_update: datetime
    next_update: datetime


def load(content: bytes) -> SomeList:
    """Read a list that `listing` wrote; anything else cannot be relied on."""
    try:
        number, begins, ends = json.loads(content)
        return SomeList(number, datetime.fromisoformat(begins), datetime.fromisoformat(ends))
    except ValueError:
        raise RevocationUnknownError("This is no list.") from None


def listing(
    number: int, *, begins: timedelta = -HOUR, ends: timedelta = HOUR, tag: str | None = None
) -> Behaviour:
    """Answer with a list, or 304 to who has it."""

    def behave(visit: Visit) -> None:
        if tag is not None and visit.headers.get("if-none-match") == tag:
            visit.answer(b"", 304, ETag=tag)
            return
        now = cache._now()
        text = json.dumps([number, (now + begins).isoformat(), (now + ends).isoformat()])
        visit.answer(text.encode(), content_type="application/pkix-crl", **_tagged(tag))

    return behave


def _tagged(tag: str | None) -> dict[str, str]:
    return {} if tag is None else {"ETag": tag}


Get: TypeAlias = Callable[[], CachedCrl[SomeList]]
Open: TypeAlias = Callable[..., Get]


@pytest.fixture(params=["threads", "asyncio"])
def opened(request: pytest.FixtureRequest) -> Any:
    """Open a cache of each kind; its `get` waits for what goes on in the background."""
    if request.param == "threads":
        return lambda url, **arguments: CrlCache(url, load=load, **arguments).get

    def open_async(url: str, **arguments: Any) -> Get:
        cache = AsyncCrlCache(url, load=load, **arguments)

        async def get() -> CachedCrl[SomeList]:
            await cache.get()
            if cache._task is not None:
                await cache._task
            return await cache.get()

        return lambda: asyncio.run(get())

    return open_async


class Time:
    """Both clocks of a cache, which the test moves."""

    def __init__(self) -> None:
        self.begun = datetime.now(UTC)
        self.passed = 0.0
        self.slept = 0.0
        """Seconds that the monotonic clock did not count."""

    def __call__(self, seconds: float) -> None:
        self.passed += seconds


@pytest.fixture(autouse=True)
def go_by(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Let time go by."""
    clock = Time()
    monkeypatch.setattr(cache, "_seconds", lambda: 1_000.0 + clock.passed)
    monkeypatch.setattr(
        cache, "_now", lambda: clock.begun + timedelta(seconds=clock.passed + clock.slept)
    )
    return clock


class Serving(FaultyServer):
    """A server that has a list at an address."""

    def __init__(self, *behaviours: Behaviour) -> None:
        super().__init__(*behaviours)
        self.address = f"{self.url}/pki/intermediate.crl"


def test_it_is_fetched_once_while_it_is_fresh(opened: Open) -> None:
    with Serving(listing(7)) as server:
        get = opened(server.address, access_key="sma_abc")
        for _ in range(3):
            cached = get()
        assert (cached.crl.number, cached.stale, cached.trouble) == (7, False, None)
        assert abs(cached.confirmed_at - datetime.now(UTC)) < timedelta(minutes=1)
        [visit] = server.visits
    assert visit.request.startswith(b"GET /pki/intermediate.crl HTTP/1.1\r\n")
    assert visit.headers["authorization"] == "Bearer sma_abc"
    assert "if-none-match" not in visit.headers


def test_a_list_that_is_known_is_not_sent_again(opened: Open, go_by: Time) -> None:
    """Conditional requests: 304 confirms it, and costs nothing."""
    with Serving(listing(7, tag='"7"'), listing(7, tag='"7"'), listing(8, tag='"8"')) as server:
        get = opened(server.address, refresh=60)
        first = get()
        go_by(61)
        second = get()
        go_by(61)
        third = get()
        tags = [visit.headers.get("if-none-match") for visit in server.visits]
    assert tags == [None, '"7"', '"7"']
    assert second.crl is first.crl
    assert second.confirmed_at > first.confirmed_at
    assert third.crl.number == 8


def test_next_update_is_honoured(opened: Open, go_by: Time) -> None:
    """A list that ends before the next refresh is fetched when it ends."""
    with Serving(listing(7, ends=timedelta(minutes=10)), listing(8)) as server:
        get = opened(server.address, refresh=3600)
        assert get().crl.number == 7
        go_by(599)
        assert get().crl.number == 7
        go_by(2)
        assert get().crl.number == 8


def test_a_list_that_ended_while_the_machine_slept(opened: Open, go_by: Time) -> None:
    """It is fetched at once, although the monotonic clock counts no time. Failures get pauses."""
    with Serving(listing(7), status(503), listing(8)) as server:
        get = opened(server.address)
        assert get().crl.number == 7
        go_by.slept = 3_601
        assert get().stale
        assert get().stale
        assert len(server.visits) == 2
        go_by(60)
        cached = get()
    assert (cached.crl.number, cached.stale, cached.trouble) == (8, False, None)


def status(code: int, **headers: str) -> Behaviour:
    """Answer without a list."""
    return lambda visit: visit.answer(b"{}", code, **headers)


def huge(visit: Visit) -> None:
    visit.answer(b" " * 200_000)


BAD: dict[str, tuple[Behaviour, str]] = {
    "away": (status(503), "503"),
    "not allowed": (status(401), "401"),
    "redirected": (status(302, Location="/"), "302"),
    "closed": (lambda visit: visit.connection.close(), "broke"),
    "no list": (lambda visit: visit.answer(b"<html>"), "no list"),
    "compressed": (lambda visit: visit.answer(b"\x1f\x8b", Content_Encoding="gzip"), "compressed"),
    "too much": (huge, "100000 bytes"),
    "too slow": (lambda visit: visit.drip(b"HTTP/1.1 200 OK\r\n" + b"x" * 999, 0.05), "in time"),
    "older": (listing(6), "number 7"),
    "from the future": (listing(9, begins=2 * HOUR, ends=3 * HOUR), "dated in the future"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_bad_replaces_no_good_list(opened: Open, go_by: Time, name: str) -> None:
    """The last good one is given out, with the reason; then it is fetched again."""
    bad, reason = BAD[name]
    with Serving(listing(7), bad, listing(8)) as server:
        patience = 1 if name == "too slow" else 30
        get = opened(server.address, refresh=60, fetch_seconds=patience, max_bytes=100_000)
        assert get().crl.number == 7
        go_by(61)
        kept = get()
        assert (kept.crl.number, kept.stale) == (7, False)
        assert kept.trouble is not None
        assert reason in kept.trouble
        go_by(61)
        again = get()
        assert (again.crl.number, again.trouble) == (8, None)


def test_it_says_when_the_list_is_stale(opened: Open, go_by: Time) -> None:
    """The last good one is better than none for who wants it, and `stale` says what it is."""
    with Serving(listing(7), status(503)) as server:
        get = opened(server.address)
        assert not get().stale
        go_by(3_601)
        cached = get()
    assert (cached.crl.number, cached.stale) == (7, True)
    assert cached.trouble is not None


def test_an_authority_that_has_no_newer_list(opened: Open, go_by: Time) -> None:
    """304 for a list that has ended is no confirmation, and is not asked for in a loop."""
    with Serving(listing(7, tag='"7"')) as server:
        get = opened(server.address)
        get()
        go_by(3_601)
        for _ in range(5):
            cached = get()
        assert len(server.visits) == 2
        assert cached.stale
        assert cached.trouble is not None
        assert "newest list of the authority has expired" in cached.trouble


@pytest.mark.parametrize("bad", [status(304), status(500)])
def test_without_a_list_there_is_none(opened: Open, go_by: Time, bad: Behaviour) -> None:
    with Serving(bad, listing(7)) as server:
        get = opened(server.address)
        with pytest.raises(RevocationUnknownError, match="no revocation list yet"):
            get()
        go_by(2)
        assert get().crl.number == 7
    with pytest.raises(RevocationUnknownError, match="No server answers"):
        opened(f"http://127.0.0.1:{closed_port()}/crl")()


def test_an_authority_in_trouble_is_left_alone(
    opened: Open, go_by: Time, caplog: pytest.LogCaptureFixture
) -> None:
    """Pauses grow up to a minute, Retry-After counts, and the log has the trouble once."""
    with Serving(listing(7), status(503, Retry_After="90"), status(503)) as server:
        get = opened(server.address)
        get()
        go_by(301)
        asked_at = []
        for second in range(400):
            before = len(server.visits)
            assert get().trouble is not None
            if len(server.visits) > before:
                asked_at.append(second)
            go_by(1)
    pauses = [later - earlier for earlier, later in pairwise(asked_at)]
    assert pauses[0] == 90
    assert all(2 <= pause <= 60 for pause in pauses[1:])
    assert pauses[-1] >= 30
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_load_that_fails_for_another_reason(
    go_by: Time, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect of the caller's costs no list, and is told."""
    loads = iter([load])

    def load_once(content: bytes) -> SomeList:
        return next(loads)(content)

    with Serving(listing(7)) as server:
        cache = CrlCache(server.address, load=load_once)
        cache.get()
        go_by(301)
        assert cache.get().trouble == "The list could not be loaded. The log has the error."
    assert "StopIteration" in caplog.text


def test_threads_wait_for_nothing_that_is_there(go_by: Time) -> None:
    """One refreshes, the others get the list that is kept; the first list is fetched once."""
    go_on = threading.Event()

    def slowly(visit: Visit) -> None:
        go_on.wait(10)
        listing(8)(visit)

    with Serving(listing(7), slowly) as server, ThreadPoolExecutor(8) as threads:
        cache = CrlCache(server.address, load=load)
        first = [threads.submit(cache.get) for _ in range(8)]
        assert {each.result(10).crl.number for each in first} == {7}
        go_by(301)
        refreshing = threads.submit(cache.get)
        wait_until(lambda: len(server.visits) == 2, 10)
        assert cache.get().crl.number == 7
        go_on.set()
        assert refreshing.result(10).crl.number == 8
        assert len(server.visits) == 2


async def test_tasks_wait_for_nothing_that_is_there(go_by: Time) -> None:
    with Serving(listing(7), lambda visit: visit.wait()) as server:
        cache = AsyncCrlCache(server.address, load=load)
        first = await asyncio.gather(*[cache.get() for _ in range(8)])
        assert {each.crl.number for each in first} == {7}
        go_by(301)
        assert (await cache.get()).crl.number == 7
        await cache.close()
        assert len(server.visits) <= 2


def test_a_list_comes_over_https() -> None:
    """Over http anybody on the way could hold a newer list back."""
    for kind in (CrlCache, AsyncCrlCache):
        with pytest.raises(ConfigurationError, match="keep revoked devices"):
            kind("http://sma.example.org/pki/intermediate.crl", load=load)
        kind("http://sma.example.org/pki/intermediate.crl", load=load, plaintext=True)
