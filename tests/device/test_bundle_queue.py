"""The queue: nothing lost, nothing twice, never larger than it may be."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.device import BundleQueue, Delivery, bundle_id
from birthmark_sma.device.private_directory import DirectoryLock, PrivateDirectory
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


@pytest.fixture
def queue(folder: PrivateDirectory, held: DirectoryLock, bundles: list[Bundle]) -> BundleQueue:
    """A queue of four bundles that holds five."""
    made = BundleQueue(folder, held, max_bundles=5)
    for bundle in bundles[:4]:
        made.put(bundle)
    return made


class Aggregator:
    """Takes bundles, and answers as it is told; then TAKEN."""

    def __init__(self, *answers: Delivery) -> None:
        self.answers = list(answers)
        self.got: list[Bundle] = []

    def __call__(self, bundle: Bundle) -> Delivery:
        self.got.append(bundle)
        return self.answers.pop(0) if self.answers else Delivery.TAKEN


def test_all_arrive_once_and_in_order(queue: BundleQueue, bundles: list[Bundle]) -> None:
    aggregator = Aggregator()
    assert queue.drain(aggregator) == 4
    assert aggregator.got == bundles[:4]
    assert queue.drain(aggregator) == 0
    assert len(queue) == 0


def test_it_outlives_its_process(
    queue: BundleQueue, folder: PrivateDirectory, held: DirectoryLock, bundles: list[Bundle]
) -> None:
    queue.drain(Aggregator(Delivery.TAKEN, Delivery.LATER))
    found = BundleQueue(folder, held, max_bundles=5)
    assert len(found) == 3
    found.put(bundles[4])
    aggregator = Aggregator()
    assert found.drain(aggregator) == 4
    assert aggregator.got == bundles[1:5]


def test_whoever_is_away_is_asked_again(queue: BundleQueue, bundles: list[Bundle]) -> None:
    aggregator = Aggregator(Delivery.TAKEN, Delivery.LATER)
    assert queue.drain(aggregator) == 1
    assert len(queue) == 3
    assert queue.drain(aggregator) == 3
    assert [bundle_id(b) for b in aggregator.got] == [
        bundle_id(bundles[n]) for n in (0, 1, 1, 2, 3)
    ]


def test_what_send_raises_goes_through(queue: BundleQueue) -> None:
    def broken(_: Bundle) -> Delivery:
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError):
        queue.drain(broken)
    assert len(queue) == 4
    assert queue.drain(Aggregator()) == 4


@pytest.mark.parametrize("answer", [None, True, "taken", 200])
def test_a_send_that_returns_no_delivery_loses_nothing(queue: BundleQueue, answer: Any) -> None:
    """A callback that forgot its `return` is told so, and every bundle stays."""
    for _ in range(2):
        with pytest.raises(TypeError, match="send returns a Delivery"):
            queue.drain(lambda _: answer)
    assert (len(queue), queue.put_aside) == (4, 0)
    assert queue.drain(Aggregator()) == 4


def test_a_forked_process_touches_no_queue(
    queue: BundleQueue, folder: PrivateDirectory, bundles: list[Bundle]
) -> None:
    """Its parent's next bundle would get the same number, and take the place of this one."""
    queue.drain(Aggregator(Delivery.REFUSED, Delivery.LATER))
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
    queue: BundleQueue, folder: PrivateDirectory, held: DirectoryLock
) -> None:
    assert queue.drain(Aggregator(Delivery.REFUSED)) == 3
    assert (len(queue), queue.put_aside) == (0, 1)
    assert BundleQueue(folder, held).put_aside == 1
    again = Aggregator()
    assert queue.drain(again) == 0
    queue.discard_put_aside()
    assert folder.names() == []
    assert BundleQueue(folder, held).put_aside == queue.put_aside == 0


def test_it_is_bounded(queue: BundleQueue, bundles: list[Bundle]) -> None:
    queue.put(bundles[4])
    for _ in range(2):
        with pytest.raises(QueueFullError):
            queue.put(bundles[5])
    queue.drain(Aggregator(Delivery.REFUSED, Delivery.LATER))
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

    def slow(bundle: Bundle) -> Delivery:
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
