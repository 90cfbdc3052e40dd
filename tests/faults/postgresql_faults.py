"""Faults of PostgreSQL's processes, and of the network before it."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import psycopg

from tests.faults.beds import Bed
from tests.faults.fault import HANGING_SECONDS, Fault
from tests.support.databases.commit_loser import Loss
from tests.support.programs.running import children_of, frozen, wait_until

_END_SECONDS = 30.0
_SLOW_SECONDS = 0.5
_BETWEEN_LOSSES_SECONDS = 1.0


def postmaster(bed: Bed) -> int:
    """Return the process id of PostgreSQL's main process."""
    lines = (bed.postgres.data_directory / "postmaster.pid").read_text(encoding="ascii")
    return int(lines.split("\n", 1)[0])


@contextmanager
def repeated(act: Callable[[], object], seconds: float) -> Iterator[None]:
    """Do something again and again for a block, with pauses of `seconds`."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            act()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _ended_by(end: Callable[[Bed], object]) -> Callable[[Bed], AbstractContextManager[None]]:
    @contextmanager
    def play(bed: Bed) -> Iterator[None]:
        end(bed)
        yield
        bed.postgres.start()

    return play


def _stop_at_once(bed: Bed) -> None:
    os.kill(postmaster(bed), signal.SIGQUIT)  # PostgreSQL's "immediate shutdown"
    wait_until(lambda: not bed.postgres.running, _END_SECONDS)


def _frozen(bed: Bed) -> AbstractContextManager[None]:
    main = postmaster(bed)
    return frozen([main, *children_of(main)])


@contextmanager
def _standby(bed: Bed) -> Iterator[None]:
    """Let PostgreSQL come back as a standby, which is promoted at the end."""
    bed.postgres.stop()
    signal_file = bed.postgres.data_directory / "standby.signal"
    signal_file.touch()
    bed.postgres.start()
    yield
    with psycopg.connect(bed.postgres.url, autocommit=True) as admin:
        admin.execute("SELECT pg_promote(true, 30)")


def _losing(loss: Loss, times: int) -> Callable[[Bed], AbstractContextManager[None]]:
    """Lose COMMITs, or their answers: each one after callers had verdicts again."""

    @contextmanager
    def play(bed: Bed) -> Iterator[None]:
        for _ in range(times):
            lost = bed.commits.lost
            bed.commits.lose(loss)
            wait_until(lambda lost=lost: bed.commits.lost > lost, _END_SECONDS)  # type: ignore[misc]
            time.sleep(_BETWEEN_LOSSES_SECONDS)
        yield

    return play


@contextmanager
def _network_frozen(bed: Bed) -> Iterator[None]:
    bed.network.freeze()
    yield
    bed.network.thaw()


_TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = '{database}' AND pid <> pg_backend_pid()"
)

FAULTS = (
    Fault("stopped in order, started after 4 s", _ended_by(lambda bed: bed.postgres.stop())),
    Fault("stopped at once (immediate), started after 4 s", _ended_by(_stop_at_once)),
    Fault("killed with SIGKILL, started after 4 s", _ended_by(lambda bed: bed.postgres.kill())),
    Fault("restarted quickly", _ended_by(lambda bed: bed.postgres.stop()), 0.0),
    Fault("frozen (SIGSTOP)", _frozen, HANGING_SECONDS),
    Fault("a standby in place of the primary (25006)", _standby),
    Fault("connections cut and refused", lambda bed: bed.network.cut()),
    Fault("network frozen in both directions", _network_frozen, HANGING_SECONDS),
    Fault("answers swallowed", lambda bed: bed.network.swallowing_answers(), HANGING_SECONDS),
    Fault(
        "network slow, 500 ms each way",
        lambda bed: bed.network.slow(_SLOW_SECONDS),
        HANGING_SECONDS,
    ),
    Fault("the answer of COMMIT lost, 3 times", _losing(Loss.ANSWER, 3), 1.0),
    Fault("COMMIT lost, 3 times", _losing(Loss.REQUEST, 3), 1.0),
    Fault("COMMIT lost, unnoticed by PostgreSQL", _losing(Loss.UNNOTICED, 1), 1.0),
    Fault(
        "all connections terminated, twice a second",
        lambda bed: repeated(lambda: bed.sql(_TERMINATE), 0.5),
    ),
)
