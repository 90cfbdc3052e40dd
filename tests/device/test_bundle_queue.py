"""The queue: nothing lost, nothing twice, never larger than it may be."""

import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.device import BundleQueue, Delivery, Later
from birthmark_sma.device.bundle_queue import (
    LONGEST_PAUSE_SECONDS,
    LONGEST_RETRY_AFTER_SECONDS,
    PUT_OFF_IN_A_ROW,
)
from birthmark_sma.device.state_directory import DirectoryLock, PrivateDirectory
from birthmark_sma.errors import DeviceBusyError, DeviceStorageError, QueueFullError
from birthmark_sma.protocol.bundle import Bundle
from tests.device.conftest import StartCamera


@pytest.fixture
def bundles(start: StartCamera) -> list[Bundle]:
    """Six bundles of one camera."""
    camera = start()
    return [camera.capture(bytes([n])) for n in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> PrivateDirectory:
    """Where a queue lies."""
    return PrivateDirectory(tmp_path / "queue")


@pytest.fixture
def held(tmp_path: Path) -> Iterator[DirectoryLock]:
    """The lock of the camera that the queue belongs to."""
    lock = PrivateDirectory(tmp_path / "its camera").lock()
    yield lock
    lock.release()


class Time:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    """The clock by which the queue's pauses are over."""
    return Time()


Reopen = Callable[..., BundleQueue]


@pytest.fixture
def reopen(folder: PrivateDirectory, held: DirectoryLock, time: Time) -> Reopen:
    """Open the queue, as another process would find it."""
    return partial(BundleQueue, folder, held, max_bundles=5, seconds=time, chance=lambda: 1.0)


@pytest.fixture
def queue(reopen: Reopen, bundles: list[Bundle]) -> BundleQueue:
    """A queue of four bundles that holds five."""
    made = reopen()
    for bundle in bundles[:4]:
        made.put(bundle)
    return made


class Aggregator:
    """Takes bundles, and answers as it is told; then TAKEN."""

    def __init__(self, *answers: Delivery | Later) -> None:
        self.answers = list(answers)
        self.got: list[Bundle] = []

    def __call__(self, bundle: Bundle) -> Delivery | Later:
        self.got.append(bundle)
        return self.answers.pop(0) if self.answers else Delivery.TAKEN


def test_all_arrive_once_and_in_order(queue: BundleQueue, bundles: list[Bundle]) -> None:
    aggregator = Aggregator()
    assert queue.drain(aggregator) == 4
    assert aggregator.got == bundles[:4]
    assert queue.drain(aggregator) == 0
    assert len(queue) == 0


def test_it_outlives_its_process(
    queue: BundleQueue, reopen: Reopen, bundles: list[Bundle], time: Time
) -> None:
    queue.drain(Aggregator(Delivery.TAKEN, Later(60)))
    found = reopen()
    assert len(found) == 3
    time.now += 1
    found.put(bundles[4])
    aggregator = Aggregator()
    assert found.drain(aggregator) == 4
    # The one that was tried goes after those that were not, also in another process.
    assert aggregator.got == [bundles[n] for n in (2, 3, 4, 1)]
    assert (len(found), len(reopen())) == (0, 0)


# --- later


def refusing(bad: Bundle, got: list[Bundle]) -> Callable[[Bundle], Delivery]:
    """Take all bundles but one."""

    def send(bundle: Bundle) -> Delivery:
        got.append(bundle)
        return Delivery.LATER if bundle == bad else Delivery.TAKEN

    return send


def test_one_that_is_always_put_off_keeps_no_other_waiting(
    start: StartCamera, folder: PrivateDirectory, held: DirectoryLock
) -> None:
    """Threat 50: 100 drains at once, by the clock of the machine, send the nine behind it."""
    camera = start()
    made = [camera.capture(bytes([n])) for n in range(10)]
    queue = BundleQueue(folder, held)
    for bundle in made:
        queue.put(bundle)
    got: list[Bundle] = []
    assert sum(queue.drain(refusing(made[0], got)) for _ in range(100)) == 9
    assert got[:10] == made
    assert len(queue) == 1


def test_more_bad_ones_than_are_tried_in_a_row(
    queue: BundleQueue, bundles: list[Bundle], time: Time
) -> None:
    """Threat 50: after a pause, those that were not tried yet have their turn first."""
    aggregator = Aggregator(*[Delivery.LATER] * PUT_OFF_IN_A_ROW)
    assert queue.drain(aggregator) == 0
    assert aggregator.got == bundles[:3]
    assert [queue.drain(aggregator) for _ in range(9)] == [0] * 9
    time.now += 1
    assert queue.drain(aggregator) == 4
    assert aggregator.got[3:] == [bundles[n] for n in (3, 0, 1, 2)]


def test_bad_ones_whose_time_has_come_go_after_a_new_one(
    queue: BundleQueue, bundles: list[Bundle], time: Time
) -> None:
    """Threat 50: a hundred of them, overdue, would hold it up for hours, three a round."""
    bad, new = bundles[:4], bundles[4]
    got: list[Bundle] = []

    def send(bundle: Bundle) -> Delivery:
        got.append(bundle)
        return Delivery.LATER if bundle in bad else Delivery.TAKEN

    for _ in range(2):
        queue.drain(send)
        time.now += LONGEST_PAUSE_SECONDS
    queue.put(new)
    got.clear()
    assert queue.drain(send) == 1
    assert got[0] == new


def test_it_is_put_off_behind_others_in_the_next_process_too(
    queue: BundleQueue, reopen: Reopen, bundles: list[Bundle]
) -> None:
    """Threat 50: a camera that lives for one round at a time gets past any number of bad ones."""
    for _ in range(2):
        queue.drain(Aggregator(*[Delivery.LATER] * 3))
        queue = reopen()
    aggregator = Aggregator()
    assert queue.drain(aggregator) == 4
    # Tried by now: the first two twice, the third and the fourth once.
    assert aggregator.got == [bundles[n] for n in (2, 3, 0, 1)]


def test_pauses_grow_up_to_a_bound(queue: BundleQueue, bundles: list[Bundle], time: Time) -> None:
    waits: list[float | None] = []
    got: list[Bundle] = []
    for _ in range(13):
        queue.drain(refusing(bundles[0], got))
        wait = queue.seconds_to_next_attempt
        waits.append(wait)
        assert wait
        time.now += wait - 0.01
        assert queue.drain(refusing(bundles[0], got)) == 0
        time.now += 0.02
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == LONGEST_PAUSE_SECONDS
    assert len(got) == 13 + 3


def test_half_of_a_pause_is_chance(folder: PrivateDirectory, held: DirectoryLock,
                                   bundles: list[Bundle], time: Time) -> None:  # fmt: skip
    """Cameras that lost one server together do not come back together."""
    queue = BundleQueue(folder, held, seconds=time, chance=lambda: 0.0)
    queue.put(bundles[0])
    queue.drain(lambda _: Delivery.LATER)
    assert queue.seconds_to_next_attempt == 0.5


def test_a_server_that_asks_for_it_is_left_alone(
    queue: BundleQueue, bundles: list[Bundle], time: Time
) -> None:
    """Retry-After is the server's, whichever bundle it was said to; then others go first."""
    aggregator = Aggregator(Later(30))
    assert queue.drain(aggregator) == 0
    assert queue.seconds_to_next_attempt == 30
    time.now += 29.9
    assert queue.drain(aggregator) == 0
    assert aggregator.got == bundles[:1]
    time.now += 0.2
    assert queue.drain(aggregator) == 4
    assert aggregator.got[1:] == [bundles[n] for n in (1, 2, 3, 0)]
    assert queue.seconds_to_next_attempt is None


def test_a_server_that_asks_for_nothing_ends_the_round(
    queue: BundleQueue, bundles: list[Bundle]
) -> None:
    """Also for whoever is told to stop, amid a round."""
    aggregator = Aggregator(*[Later(0)] * 9)
    assert queue.drain(aggregator) == 0
    assert aggregator.got == bundles[:1]


def test_nobody_asks_for_a_year(queue: BundleQueue) -> None:
    queue.drain(Aggregator(Later(999_999_999)))
    assert queue.seconds_to_next_attempt == LONGEST_RETRY_AFTER_SECONDS


def test_a_disk_that_cannot_note_an_attempt(
    queue: BundleQueue, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch, time: Time
) -> None:
    """The pause holds all the same, and no bundle is lost."""

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    got: list[Bundle] = []
    with monkeypatch.context() as disk:
        disk.setattr(Path, "replace", read_only)
        assert queue.drain(refusing(bundles[0], got)) == 3
    time.now += 1
    assert queue.drain(Aggregator()) == 1


def test_a_disk_that_notes_an_attempt_and_says_it_does_not(
    queue: BundleQueue, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch, time: Time
) -> None:
    """A rename that was not synced has happened: the file is found by its new name."""

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    def send(_: Bundle) -> Delivery:
        monkeypatch.setattr(os, "fsync", broken)
        return Delivery.LATER

    assert queue.drain(send) == 0
    monkeypatch.undo()
    time.now += 1
    assert queue.drain(Aggregator()) == 4


def test_what_send_raises_goes_through_and_holds_nobody_up(
    queue: BundleQueue, bundles: list[Bundle], time: Time
) -> None:
    """Threat 50: a bundle at which `send` always fails is put off as well."""
    got: list[Bundle] = []

    def broken(bundle: Bundle) -> Delivery:
        got.append(bundle)
        raise ConnectionError("no network")

    for _ in range(2):
        with pytest.raises(ConnectionError):
            queue.drain(broken)
    assert got == bundles[:2]
    assert len(queue) == 4
    time.now += 1
    assert queue.drain(Aggregator()) == 4


@pytest.mark.parametrize("answer", [None, True, "taken", 200])
def test_a_send_that_returns_no_delivery_loses_nothing(
    queue: BundleQueue, answer: Any, time: Time
) -> None:
    """A callback that forgot its `return` is told so, and every bundle stays."""
    for _ in range(2):
        with pytest.raises(TypeError, match="send must return a Delivery"):
            queue.drain(lambda _: answer)
    assert (len(queue), queue.put_aside) == (4, 0)
    time.now += 1
    assert queue.drain(Aggregator()) == 4


def test_a_forked_process_touches_no_queue(
    queue: BundleQueue, folder: PrivateDirectory, bundles: list[Bundle]
) -> None:
    """Its parent's next bundle would get the same number, and take the place of this one."""
    queue.drain(Aggregator(Delivery.REFUSED, Later(60)))
    before = folder.names()
    forbidden: list[Callable[[], object]] = [
        lambda: queue.put(bundles[4]),
        lambda: queue.drain(Aggregator()),
        queue.discard_put_aside,
    ]
    child = os.fork()
    if child == 0:
        told = 0
        for each in forbidden:
            try:
                each()
            except DeviceBusyError:
                told += 1
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == len(forbidden)
    assert folder.names() == before


def test_a_queue_ends_with_its_camera(
    queue: BundleQueue, folder: PrivateDirectory, held: DirectoryLock, bundles: list[Bundle]
) -> None:
    """Closed amid a delivery, it leaves the rest, that bundle too, to whoever comes next."""

    def take_and_close(_: Bundle) -> Delivery:
        held.release()
        return Delivery.TAKEN

    with pytest.raises(DeviceStorageError, match="closed"):
        queue.drain(take_and_close)
    with pytest.raises(DeviceStorageError, match="closed"):
        queue.put(bundles[4])
    with pytest.raises(DeviceStorageError, match="closed"):
        queue.discard_put_aside()
    assert len(folder.names()) == 4


def test_a_bundle_takes_no_others_place(
    queue: BundleQueue, folder: PrivateDirectory, bundles: list[Bundle]
) -> None:
    """Whoever wrote a file of the next number, it stays; the bundle gets the number after it."""
    taken = f"{5:020}.json"
    folder.write(taken, bundles[5].to_json())
    with pytest.raises(DeviceStorageError, match="exists"):
        queue.put(bundles[4])
    assert folder.read(taken) == bundles[5].to_json()
    queue.put(bundles[4])
    assert folder.names()[-1] == f"{6:020}.json"
    assert not list(folder.path.glob(".*"))


def test_a_card_without_hard_links_will_do(
    queue: BundleQueue, folder: PrivateDirectory, bundles: list[Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """FAT and exFAT have none; a bundle that is queued there is whole as well."""

    def no_links(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    queue.put(bundles[4])
    assert folder.read(f"{5:020}.json") == bundles[4].to_json()


def test_what_is_refused_does_not_hold_up_the_others(
    queue: BundleQueue, folder: PrivateDirectory, reopen: Reopen, bundles: list[Bundle]
) -> None:
    """It is put aside, where a person can look at it; also where it was put off before."""
    queue.drain(Aggregator(Later(0)))
    queue = reopen()
    assert queue.drain(Aggregator(*[Delivery.TAKEN] * 3, Delivery.REFUSED)) == 3
    assert (len(queue), queue.put_aside) == (0, 1)
    assert reopen().put_aside == 1
    [file] = queue.put_aside_files()
    assert file == folder.path / f"{1:020}.refused"
    assert file.read_bytes() == bundles[0].to_json()
    again = Aggregator()
    assert queue.drain(again) == 0
    queue.discard_put_aside()
    assert folder.names() == []
    assert reopen().put_aside == queue.put_aside == 0


def test_it_is_bounded(queue: BundleQueue, bundles: list[Bundle]) -> None:
    queue.put(bundles[4])
    for _ in range(2):
        with pytest.raises(QueueFullError):
            queue.put(bundles[5])
    queue.drain(Aggregator(Delivery.REFUSED, Later(60)))
    with pytest.raises(QueueFullError):
        queue.put(bundles[5])
    queue.discard_put_aside()
    queue.put(bundles[5])
    assert len(queue) == 5


def test_a_damaged_bundle_is_put_aside(
    queue: BundleQueue, folder: PrivateDirectory, bundles: list[Bundle]
) -> None:
    first, second = folder.names()[:2]
    (folder.path / first).write_bytes(b'{"version": 1')
    (folder.path / second).unlink()
    aggregator = Aggregator()
    assert queue.drain(aggregator) == 2
    assert aggregator.got == bundles[2:4]
    assert folder.names() == [first.replace(".json", ".damaged")]


def test_an_acknowledged_bundle_that_cannot_be_removed_is_not_sent_again(
    queue: BundleQueue, bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that turned read-only: it is told, and the aggregation server hears of it once."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    aggregator = Aggregator()
    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", read_only)
        for _ in range(3):
            with pytest.raises(DeviceStorageError, match="Read-only"):
                queue.drain(aggregator)
    assert aggregator.got == bundles[:1]
    assert queue.drain(aggregator) == 3
    assert aggregator.got == bundles[:4]


def test_a_bundle_that_did_not_get_onto_the_disk_is_not_queued(
    queue: BundleQueue, folder: PrivateDirectory, bundles: list[Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(DeviceStorageError, match="No space left"):
            queue.put(bundles[4])
    assert len(queue) == len(folder.names()) == 4
    queue.put(bundles[4])
    assert len(queue) == 5


def test_drains_do_not_get_into_each_others_way(queue: BundleQueue, bundles: list[Bundle]) -> None:
    """Nor does a picture that is taken meanwhile wait for a slow aggregation server."""
    aggregator = Aggregator()
    entered, go_on = threading.Event(), threading.Event()

    def slow(bundle: Bundle) -> Delivery | Later:
        entered.set()
        assert go_on.wait(10)
        return aggregator(bundle)

    drains = [threading.Thread(target=queue.drain, args=(slow,)) for _ in range(3)]
    for drain in drains:
        drain.start()
    assert entered.wait(10)
    queue.put(bundles[4])
    go_on.set()
    for drain in drains:
        drain.join(20)
    assert aggregator.got == bundles[:5]
    assert len(queue) == 0
