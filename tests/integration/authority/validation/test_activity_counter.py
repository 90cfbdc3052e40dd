"""The activity of devices is counted once, whatever happens to the transaction that adds it."""

from collections.abc import Callable

import pytest

from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.validation import activity_counter
from birthmark_sma.config import Settings
from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.outages import retries
from tests.integration.authority.validation.test_audit_counters import CALLER, fail_at
from tests.support.authorities import count_activity, new_authority, new_camera, opened, rows_of
from tests.support.counting import assert_counters_are_those_of_the_trail
from tests.support.programs.running import wait_until


@pytest.mark.parametrize("words", ["INTO device_activity", "INTO busiest_devices"])
def test_activity_that_cannot_be_added_is_added_later(
    authority: Authority, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdicts do not wait for it, and whoever counts goes on from what is in the database."""
    monkeypatch.setattr(retries, "_SECONDS", 0.1)
    cameras = [new_camera(authority, f"camera-{number}") for number in range(3)]
    left = fail_at(authority, words, times=1_000)
    for camera in cameras * 2:
        passed = authority.validator.submit(camera.token(), CALLER).result(30)
        assert passed.verdict is Verdict.PASS
        with pytest.raises(DatabaseUnavailableError):
            count_activity(authority)
    assert rows_of(authority.database, "SELECT * FROM device_activity") == []
    left[0] = 0
    count_activity(authority)
    assert assert_counters_are_those_of_the_trail(authority.database) == 6


def test_activity_is_never_counted_twice(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit without an answer may have happened: those passes are not counted again."""
    camera = new_camera(authority, "camera")
    authority.validator.submit(camera.token(), CALLER).result(30)
    unknown = DatabaseUnavailableError("the answer was lost", DatabaseFault.AWAY)
    unknown.may_have_committed = True

    def commit_and_lose_the_answer(attempt: Callable[[], None]) -> None:
        attempt()
        raise unknown

    with monkeypatch.context() as patch:
        patch.setattr(activity_counter, "retry", commit_and_lose_the_answer)
        with pytest.raises(DatabaseUnavailableError):
            count_activity(authority)
    count_activity(authority)
    assert assert_counters_are_those_of_the_trail(authority.database) == 1


def test_activity_is_added_when_the_authority_closes(settings: Settings) -> None:
    """A command, which runs no background task, counts as a server does."""
    with new_authority(settings) as authority:
        authority.validator.submit(new_camera(authority, "camera").token(), CALLER).result(30)
    with opened(settings) as authority:
        assert assert_counters_are_those_of_the_trail(authority.database) == 1


def test_more_devices_than_fit_in_a_transaction(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them is counted."""
    monkeypatch.setattr(activity_counter, "_AT_ONCE", 2)
    cameras = [new_camera(authority, f"camera-{number}") for number in range(5)]
    for camera in [*cameras, cameras[0]]:
        authority.validator.submit(camera.token(), CALLER).result(30)
    count_activity(authority)
    assert assert_counters_are_those_of_the_trail(authority.database) == 6


def test_activity_is_added_soon_after_an_outage(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not after a minute: until then, a server that is killed loses it."""
    monkeypatch.setattr(retries, "_SECONDS", 0.1)
    left = fail_at(authority, "INTO device_activity", times=1_000)
    authority.validator.submit(new_camera(authority, "camera").token(), CALLER).result(30)
    authority.validator.activity.start()
    wait_until(lambda: "the activity-counter waits for the database" in caplog.text, 30)
    left[0] = 0
    query = "SELECT passes FROM device_activity"
    wait_until(lambda: rows_of(authority.database, query) == [(1,)], 30)
