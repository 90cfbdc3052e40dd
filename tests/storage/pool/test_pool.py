"""The pool of a writer: room is asked for, reserved and given back."""

import threading

import pytest

from birthmark_sma.errors import PoolFullError
from birthmark_sma.storage.pool.pool import Pool


@pytest.fixture
def pool() -> Pool[str]:
    """Return a pool of 100 items: one caller may have 45 or more in calls of several items."""
    return Pool(threading.Condition(), 100)


def test_a_reservation_is_replaced_by_its_call(pool: Pool[str]) -> None:
    """The call is accepted although the caller's share is used up by the reservation."""
    room = pool.reserve("a", 60)
    with pytest.raises(PoolFullError):
        pool.add("a", "refused", 2)
    pool.add("a", "accepted", 50, room)
    assert pool.waiting == 50
    pool.release(room)  # does nothing any more
    assert pool.take(100) == ["accepted"]
    pool.add("a", "next", 2)


def test_a_reservation_can_be_given_back(pool: Pool[str]) -> None:
    room = pool.reserve("a", 60)
    with pytest.raises(PoolFullError):
        pool.reserve("a", 60)
    pool.release(room)
    pool.release(room)
    pool.reserve("a", 60)


def test_what_is_refused_is_counted(pool: Pool[str]) -> None:
    """At every door, by the items that it would have brought."""
    pool.add("a", "all", 100)
    with pytest.raises(PoolFullError):
        pool.check("a", 1)
    with pytest.raises(PoolFullError):
        pool.check("b", 7)
    with pytest.raises(PoolFullError):
        pool.reserve("b", 20)
    with pytest.raises(PoolFullError):
        pool.add("b", "one more", 1)
    assert pool.refused == 29


def test_a_part_is_for_calls_of_one_item(pool: Pool[str]) -> None:
    for number in range(10):
        pool.add(f"caller {number}", "a call", 9)
    with pytest.raises(PoolFullError):
        pool.check("newcomer", 2)
    pool.check("newcomer", 1)
    pool.add("newcomer", "single", 1)
    assert pool.refused == 2


def test_the_refusal_tells_when_there_is_room_again(
    pool: Pool[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("birthmark_sma.storage.pool.pool.monotonic", lambda: now)
    for _ in range(5):
        pool.add("a", "ten", 10)
    for _ in range(3):
        pool.take(10)
        now += 2.0
    pool.add("a", "many", 100)
    with pytest.raises(PoolFullError) as refusal:
        pool.check("a", 1)
    assert refusal.value.drain_seconds == pytest.approx(120 / 5)
