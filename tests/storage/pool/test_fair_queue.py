"""The queue that callers share: order, shares, and that no caller waits for another's backlog."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.storage.pool import fair_queue
from birthmark_sma.storage.pool.fair_queue import SHARED, FairQueue

LIMIT = 10_000
BATCH = 1_000

CALLERS = st.sampled_from(["a", "b", "c", "d"])
SIZES = st.one_of(st.just(1), st.integers(1, 100), st.integers(500, 1_000))
CALLS = st.lists(st.tuples(CALLERS, SIZES), max_size=80)

Call = tuple[str, int, int]
"""A caller, the place of the call among the caller's, and its items."""


class Queue:
    """A queue whose calls know where they belong."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.queue: FairQueue[Call] = FairQueue(limit)
        self.added: defaultdict[str, int] = defaultdict(int)
        self.now = 0.0

    def add(self, name: str, items: int = 1, times: int = 1) -> None:
        """Add calls without asking for room."""
        for _ in range(times):
            self.queue.add(name, (name, self.added[name], items), items)
            self.added[name] += 1

    def fill(self, name: str, items: int = 1) -> int:
        """Add calls while there is room, and return how many there were."""
        before = self.added[name]
        while self.queue.has_room(name, single=items == 1):
            self.add(name, items)
        return self.added[name] - before

    def take(self, limit: int = BATCH) -> list[Call]:
        """Take a batch; it takes a second."""
        self.now += 1
        return self.queue.take(limit, self.now)

    def take_all(self) -> list[Call]:
        """Take batches until none is left."""
        taken = []
        while self.queue:
            batch = self.take()
            assert batch
            taken += batch
        return taken


def names(batch: Sequence[Call]) -> Counter[str]:
    """Count the items of a batch by caller."""
    counted: Counter[str] = Counter()
    for name, _, items in batch:
        counted[name] += items
    return counted


@given(rounds=st.lists(CALLS, max_size=5))
def test_nothing_is_lost_and_each_caller_keeps_its_order(
    rounds: list[list[tuple[str, int]]],
) -> None:
    queue = Queue()
    taken: list[Call] = []
    for calls in rounds:
        for name, items in calls:
            queue.add(name, items)
        taken += queue.take()
    taken += queue.take_all()
    for name, number in queue.added.items():
        assert [place for each, place, _ in taken if each == name] == list(range(number))
    assert len(taken) == sum(queue.added.values())
    assert queue.queue.waiting == 0
    assert queue.queue.oldest() is None
    assert queue.queue.has_room("a", single=False)


@given(backlogs=st.lists(st.lists(SIZES, min_size=1, max_size=60), min_size=2, max_size=4))
def test_callers_with_a_backlog_get_equally_much(backlogs: list[list[int]]) -> None:
    """Up to the largest call of each, and the calls that were taken as the oldest."""
    queue = Queue()
    left = {}
    for number, sizes in enumerate(backlogs):
        name = f"caller {number}"
        left[name] = sum(sizes)
        for items in sizes:
            queue.add(name, items)
    got: Counter[str] = Counter()
    for turn in range(15):  # in the sixteenth the oldest call goes first
        batch = queue.take()
        got += names(batch)
        behind = [got[name] for name, items in left.items() if got[name] < items]
        if len(behind) > 1:
            assert max(behind) - min(behind) <= 2 * BATCH, turn


@given(calls=CALLS)
def test_a_batch_has_its_limit(calls: list[tuple[str, int]]) -> None:
    """The calls before the last one do not reach it."""
    queue = Queue()
    for name, items in calls:
        queue.add(name, items)
    while queue.queue:
        batch = queue.take(200)
        assert sum(items for *_, items in batch[:-1]) < 200


def test_one_caller_is_served_as_it_comes() -> None:
    queue = Queue()
    queue.add("a", times=2_500)
    assert [len(queue.take()) for _ in range(3)] == [1_000, 1_000, 500]


def test_a_single_call_goes_before_the_backlog_of_another() -> None:
    """It is in the very next batch, and waits for none of the other's work."""
    queue = Queue()
    queue.add("hog", BATCH, times=5)
    assert names(queue.take()) == {"hog": BATCH}
    queue.add("a")
    queue.add("b", 20)
    assert names(queue.take()) == {"a": 1, "b": 20}
    assert names(queue.take()) == {"hog": BATCH}


def test_a_caller_that_waits_for_each_batch_gets_no_more_than_others() -> None:
    """It never has a backlog, and still each of its batches is counted."""
    queue, taken = Queue(), Counter[str]()
    others = [f"caller {number}" for number in range(20)]
    for name in others:
        queue.add(name, times=20)
    queue.add("batches", BATCH)
    for _ in range(600):
        batch = queue.take(200)
        taken += names(batch)
        for name, _, items in batch:
            queue.add(name, items)
    equal = taken.total() / (len(others) + 1)
    assert equal > 5 * BATCH
    # The oldest call goes first now and then, which here is always a batch.
    assert 0.8 * equal < taken["batches"] < 1.5 * equal
    assert all(0.8 * equal < taken[name] < 1.2 * equal for name in others)


def test_few_callers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses without end that send one batch each take no memory."""
    monkeypatch.setattr(fair_queue, "_MOST_REMEMBERED", 10)
    queue = Queue()
    for number in range(100):
        queue.add(f"caller {number}", BATCH)
        queue.take()
    assert len(queue.queue._ends) == 10


def test_many_singles_are_shared_in_turns() -> None:
    queue = Queue()
    queue.add("hog", times=3_000)
    queue.add("a", times=400)
    assert names(queue.take()) == {"hog": 600, "a": 400}


def test_small_batches_of_many_callers_share_a_transaction() -> None:
    queue = Queue()
    for number in range(20):
        queue.add(f"caller {number}", 100)
    assert [len(queue.take()) for _ in range(2)] == [10, 10]


def test_a_backlog_is_not_passed_by_for_ever() -> None:
    """Callers without end that come with one call each: an attacker has many addresses."""
    queue = Queue()
    queue.add("a", BATCH, times=3)
    taken = []
    for turn in range(64):
        for number in range(BATCH):
            queue.add(f"{turn} {number}")
        taken += [call for call in queue.take() if call[0] == "a"]
    assert [place for _, place, _ in taken] == [0, 1, 2]


def test_no_caller_fills_the_queue() -> None:
    """A caller alone has half of it, the next one half of the rest."""
    queue = Queue()
    assert queue.fill("hog") == LIMIT // 2
    assert queue.fill("second") == LIMIT // 4
    assert queue.fill("third") == LIMIT // 8
    assert not queue.queue.has_room("hog", single=True)
    queue.take_all()
    assert queue.fill("hog") == LIMIT // 2


def test_a_tenth_is_for_calls_of_one_item() -> None:
    queue = Queue()
    for number in range(100):
        queue.fill(f"caller {number}", BATCH // 10)
    assert queue.queue.waiting <= LIMIT * 9 // 10 + BATCH // 10
    assert not queue.queue.has_room("newcomer", single=False)
    assert queue.queue.has_room("newcomer", single=True)
    assert queue.fill("newcomer") >= LIMIT // 25


def test_calls_without_a_caller_share_the_whole_queue() -> None:
    queue: FairQueue[int] = FairQueue(3)
    for number in range(3):
        assert queue.has_room(SHARED, single=False)
        queue.add(SHARED, number, 1)
    assert not queue.has_room(SHARED, single=True)


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_a_small_queue_takes_a_large_call(limit: int) -> None:
    queue = Queue(limit)
    assert queue.fill("a", BATCH) == 1


def test_reserved_room_counts_as_taken() -> None:
    queue = Queue()
    queue.queue.reserve("a", LIMIT // 2)
    assert not queue.queue.has_room("a", single=True)
    assert queue.queue.has_room("b", single=True)
    assert queue.fill("b") == LIMIT // 4
    assert queue.queue.waiting == LIMIT // 4
    queue.queue.release("a", LIMIT // 2)
    assert queue.queue.has_room("a", single=True)


def test_the_oldest_call_is_told() -> None:
    queue = Queue()
    queue.add("hog", BATCH, times=3)
    queue.add("a")
    assert queue.queue.oldest() == ("hog", 0, BATCH)
    queue.take()
    queue.add("b")
    queue.take()
    assert queue.queue.oldest() == ("hog", 1, BATCH)


def test_the_time_to_drain_is_that_of_the_present_rate() -> None:
    """Batches of 1,000 items that take a second each. Idle time does not count."""
    queue = Queue()
    assert queue.queue.drain_seconds == 0
    queue.add("a", times=3_500)
    for _ in range(3):
        queue.take()
    assert queue.queue.drain_seconds == pytest.approx(0.5)
    queue.take()
    queue.now += 3_600
    queue.add("a", times=5_000)
    queue.take()
    assert queue.queue.drain_seconds == pytest.approx(4.0)


def test_the_oldest_call_is_searched_once_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an outage every 503 asks for it: with 10,000 callers a search takes 10 ms."""
    searches = 0

    def counted_min(calls: Iterable[Any], **options: Any) -> Any:
        nonlocal searches
        searches += 1
        return min(calls, **options)

    monkeypatch.setattr(fair_queue, "min", counted_min, raising=False)
    queue = Queue()
    assert queue.queue.oldest() is None
    for number in range(100):
        queue.add(f"caller-{number}")
        assert queue.queue.oldest() == ("caller-0", 0, 1)
    assert searches == 1
    queue.take(10)
    assert [queue.queue.oldest() for _ in range(100)] == [("caller-10", 0, 1)] * 100
    assert searches == 2
    queue.take_all()
    assert queue.queue.oldest() is None
