"""No token passes after its device was suspended, revoked or retired, in any process.

A batch of validations reads the status of its devices and commits later. An act that commits in
between would be overtaken by a PASS (docs/adr/0012).
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaitingError
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.access.store import AccessKey, KeyScope
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.background.abuse_detection import scan_for_abuse
from birthmark_sma.authority.devices import activity, revocation, states
from birthmark_sma.authority.devices.abuse_policy import AbusePolicy
from birthmark_sma.config import AbuseMode, Settings
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import Database
from tests.support.authorities import (
    count_activity,
    new_authority,
    new_camera,
    opened,
    rows_of,
    small_settings,
)
from tests.support.cameras.camera import Camera
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import (
    reinstate_device,
    retire_device,
    revoke_device,
    suspend_device,
)

CALLER = Caller(
    "192.0.2.7", AccessKey("k1", "aggregator", KeyScope.VALIDATE, datetime(2026, 1, 1, tzinfo=UTC))
)
A_WHILE = 0.5  # seconds: long enough to see that something waits
REASONS = {
    "suspend": Reason.DEVICE_SUSPENDED,
    "revoke": Reason.DEVICE_REVOKED,
    "retire": Reason.DEVICE_RETIRED,
}


def revoke(database: Database, name: str) -> str:
    """Revoke a device."""
    return revoke_device(database, name, "key_compromise")


ACTS: dict[str, Callable[[Database, str], str]] = {
    "suspend": suspend_device,
    "revoke": revoke,
    "retire": retire_device,
}


class Held:
    """A batch that has judged its tokens, and does not write them until it is let go."""

    def __init__(self) -> None:
        self.judged = threading.Event()
        self.go = threading.Event()


@contextmanager
def held_batch(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Hold the next batches of an authority's writer after they have judged."""
    held, store = Held(), authority.validator._store
    write = store.write

    def wait_and_write(*arguments: Any) -> None:
        held.judged.set()
        assert held.go.wait(30)
        write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "write", lambda _self, *given: wait_and_write(*given))
        try:
            yield held
        finally:
            held.go.set()


def is_waiting(future: Future[Any]) -> bool:
    """Return whether a future is not done after a while."""
    try:
        future.result(A_WHILE)
    except StillWaitingError:
        return True
    return False


@pytest.mark.parametrize("verb", ACTS)
def test_an_act_waits_for_the_batch_under_way(
    authority: Authority, settings: Settings, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Threat 6: its PASS is committed before the act, or not at all; the next token fails."""
    camera = new_camera(authority, "camera")
    with opened(settings) as console, ThreadPoolExecutor() as threads:
        with held_batch(authority, monkeypatch) as held:
            passing = authority.validator.submit(camera.token(), CALLER)
            assert held.judged.wait(30)
            acting = threads.submit(ACTS[verb], console.database, "camera")
            assert is_waiting(acting)
            query = "SELECT status FROM registered_devices"
            assert rows_of(authority.database, query) == [("active",)]
        assert passing.result(30).reason is Reason.GENUINE
        acting.result(30)
        for program in (authority, console):
            judged = program.validator.submit(camera.token(), CALLER).result(30)
            assert judged.reason is REASONS[verb]


def test_a_batch_waits_for_the_act_that_commits(authority: Authority, settings: Settings) -> None:
    """Threat 6: whoever asks in the moment of the commit gets FAIL."""
    camera = new_camera(authority, "camera")
    with opened(settings) as other:
        with authority.database.write() as transaction:
            change = states.suspend(ACTOR)
            assert revocation.change_registered(transaction, ["camera"], change) == {"camera"}
            revocation.finish(transaction)
            transaction.exec_driver_sql("SELECT 1")  # the lock need not wait for COMMIT
            waiting = other.validator.submit(camera.token(), CALLER)
            assert is_waiting(waiting)
        assert waiting.result(30).reason is Reason.DEVICE_SUSPENDED


def stop_before_commit(authority: Authority, console: Database, camera: Camera, how: str) -> None:
    """Let an act take the lock, and stop; meanwhile a token is validated. Commit at the end."""
    with console.write() as transaction:
        revocation.change_registered(transaction, ["camera"], states.suspend(ACTOR))
        revocation.finish(transaction)
        pid = transaction.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        waiting = authority.validator.submit(camera.token(), CALLER)
        assert is_waiting(waiting)
        if how == "killed":
            rows_of(authority.database, f"SELECT pg_terminate_backend({pid})")
        # If it is frozen, the server ends the transaction after 3 seconds.
        assert waiting.result(30).reason is Reason.GENUINE


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_an_act_that_stops_before_its_commit(postgres_url: str, tmp_path: Path, how: str) -> None:
    """A process that was killed or frozen while it had the lock: validations go on, without 503."""
    settings = small_settings(tmp_path, postgres_url)
    with new_authority(settings) as authority, opened(settings) as console:
        camera = new_camera(authority, "camera")
        with pytest.raises(DatabaseUnavailableError):
            stop_before_commit(authority, console.database, camera, how)
        query = "SELECT status FROM registered_devices"
        assert rows_of(authority.database, query) == [("active",)]


def test_acts_and_batches_side_by_side(authority: Authority, settings: Settings) -> None:
    """In one snapshot of the database: once the device is suspended, no PASS is added."""
    camera = new_camera(authority, "camera")
    tokens = [camera.token() for _ in range(4_000)]
    stop = threading.Event()

    def validate(program: Authority, some: list[Any]) -> None:
        for at in range(0, len(some), 5):
            if stop.is_set():
                return
            for future in [program.validator.submit(each, CALLER) for each in some[at : at + 5]]:
                future.result(30)

    counted = (
        "SELECT (SELECT status FROM registered_devices),"
        " (SELECT count(*) FROM validation_history WHERE validation_result = 'PASS')"
    )
    with opened(settings) as other, ThreadPoolExecutor() as threads:
        running = [
            threads.submit(validate, program, tokens[part::4])
            for part, program in enumerate([authority, other] * 2)
        ]
        for _ in range(10):
            suspend_device(other.database, "camera")
            [(status, passes)] = rows_of(other.database, counted)
            assert status == "suspended"
            threading.Event().wait(0.05)
            assert rows_of(other.database, counted) == [("suspended", passes)]
            reinstate_device(other.database, "camera")
            threading.Event().wait(0.05)
        stop.set()
        for each in running:
            each.result(60)
    assert passes > 0


def test_abuse_detection_waits_too(
    authority: Authority, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 6: its suspensions are acts like an operator's, with its own name as the actor."""
    camera = new_camera(authority, "camera")
    for _ in range(3):
        authority.validator.submit(camera.token(), CALLER).result(30)
    count_activity(authority)
    with authority.database.read() as connection:
        today = authority.database.clock.now().date()
        assert activity.passes_by_day(connection, "camera", [today]) == {today: 3}
    policy = AbusePolicy(least=2, factor=1)
    with opened(settings) as console, ThreadPoolExecutor() as threads:
        with held_batch(authority, monkeypatch) as held:
            passing = authority.validator.submit(camera.token(), CALLER)
            assert held.judged.wait(30)
            scanning = threads.submit(
                scan_for_abuse,
                console.database,
                policy,
                AbuseMode.SUSPEND,
                lambda _seconds: False,
                actor=ACTOR,
            )
            assert is_waiting(scanning)
        assert passing.result(30).reason is Reason.GENUINE
        assert scanning.result(30).suspended == 1
        judged = authority.validator.submit(camera.token(), CALLER).result(30)
    assert judged.reason is Reason.DEVICE_SUSPENDED
    who = "SELECT status_reason, status_actor FROM registered_devices"
    assert rows_of(authority.database, who) == [("certificate_hold", ACTOR.name)]
    on_hold = "SELECT revocation_reason FROM revoked_certificates"
    assert rows_of(authority.database, on_hold) == [("certificate_hold",)]
