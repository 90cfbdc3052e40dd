"""What is counted is what was recorded: through failed batches, and by several programs at once."""

import threading
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.config import Settings
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.outages import retries
from tests.support.authorities import (
    count_activity,
    execute,
    new_camera,
    opened,
)
from tests.support.counting import assert_counters_are_those_of_the_trail

CALLER = Caller("192.0.2.7")
FORGERY = CameraToken(bytes(48), 0, 0, bytes(12))


def fail_at(authority: Authority, words: str, times: int) -> list[int]:
    """Let the database give up so often at the statement with these words. Return what is left."""
    left = [times]

    def give_up(*arguments: Any) -> None:
        if words in arguments[2] and left[0]:
            left[0] -= 1
            raise OperationalError("", {}, psycopg.errors.DeadlockDetected())

    event.listen(authority.database.engine, "before_cursor_execute", give_up)
    return left


@pytest.mark.parametrize(
    "words",
    ["INTO validation_counters", "INTO device_activity", "INTO busiest_devices"],
)
def test_a_batch_that_is_tried_again_counts_once(authority: Authority, words: str) -> None:
    """A deadlock in any of the statements that count: the second try is whole, and the only one."""
    camera = new_camera(authority, "camera")
    fail_at(authority, words, times=1)
    for _ in range(3):
        passed = authority.validator.submit(camera.token(), CALLER).result(30)
        assert passed.verdict is Verdict.PASS
    authority.validator.submit(FORGERY, CALLER).result(30)
    count_activity(authority)
    assert assert_counters_are_those_of_the_trail(authority.database) == 4


def test_a_batch_that_fails_is_neither_recorded_nor_counted(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threat 19: it is an outage."""
    monkeypatch.setattr(retries, "_SECONDS", 0.2)
    camera = new_camera(authority, "camera")
    left = fail_at(authority, "INTO validation_counters", times=1_000)
    with pytest.raises(DatabaseUnavailableError):
        authority.validator.submit(camera.token(), CALLER).result(30)
    assert 2 < 1_000 - left[0] < 100, "it is tried again, and not without a pause"
    left[0] = 0
    assert assert_counters_are_those_of_the_trail(authority.database) == 0
    for _ in range(2):
        authority.validator.submit(camera.token(), CALLER).result(30)
    count_activity(authority)
    assert assert_counters_are_those_of_the_trail(authority.database) == 2


def test_no_count_no_answer(authority: Authority) -> None:
    """Where a verdict cannot be counted, it is not recorded either, and there is none."""
    execute(authority.database, "ALTER TABLE validation_counters RENAME TO elsewhere")
    with pytest.raises(DatabaseUnavailableError, match="lacks a table"):
        authority.validator.submit(FORGERY, CALLER).result(30)
    execute(authority.database, "ALTER TABLE elsewhere RENAME TO validation_counters")
    assert assert_counters_are_those_of_the_trail(authority.database) == 0


def test_several_programs_count_together(authority: Authority, settings: Settings) -> None:
    """Two validators on one database, the same devices in every order: nobody fails."""
    cameras = [new_camera(authority, f"camera-{number:02}") for number in range(12)]
    with opened(settings) as other:

        def run(who: Authority, step: int) -> None:
            tokens = [cameras[number * step % 12].token() for number in range(150)]
            futures = [who.validator.submit(token, CALLER) for token in [*tokens, FORGERY]]
            verdicts.extend(future.result(60).verdict for future in futures)

        verdicts: list[Verdict] = []
        threads = [
            threading.Thread(target=run, args=(who, step))
            for who, step in ((authority, 1), (other, 7), (authority, 5), (other, 11))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        count_activity(authority, other)
    assert len(verdicts) == 4 * 151
    assert verdicts.count(Verdict.PASS) == 600
    assert assert_counters_are_those_of_the_trail(authority.database) == 604
