"""A server whose clock is wrong, beside one whose clock is right: nobody's data end by it."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.access.keys import KeyTerms, create_key, rotate_key
from birthmark_sma.authority.access.sessions import find_session, sign_in
from birthmark_sma.authority.access.store import KeyScope
from birthmark_sma.authority.background.audit_upkeep import AuditUpkeep
from birthmark_sma.authority.background.clock_check import ClockCheck
from birthmark_sma.config import Settings
from birthmark_sma.storage.engine import Database
from tests.support.authorities import (
    new_authority,
    new_camera,
    opened,
    request_for,
    rows_of,
    small_settings,
)
from tests.support.devices.actors import ACTOR
from tests.support.programs.wrong_clock import machine_clock_ahead

CALLER = Caller("192.0.2.1")
WRONG_BY = timedelta(hours=25)


def table_sizes(database: Database) -> dict[str, int]:
    """How many rows each table has whose rows expire."""
    tables = (
        "idempotent_responses",
        "dashboard_sessions",
        "sighted_tokens",
        "validation_history",
        "validation_counters",
        "device_activity",
    )
    return {each: rows_of(database, f"SELECT count(*) FROM {each}")[0][0] for each in tables}


def test_a_clock_a_day_ahead_deletes_nothing_in_force(settings: Settings) -> None:
    """Threat 45: a server with a clock 25 h ahead, merely started, and then at work.

    On SQLite it is the one server, whose clock is set while it runs.
    """
    kept = settings.model_copy(update={"audit_retention_days": 1})
    with new_authority(kept) as right:
        request = request_for("camera-1", idempotency_key="key")
        first = right.provisioner.provision_device(request)
        key = create_key(right.database, KeyTerms("admin", KeyScope.ADMIN), actor=ACTOR)
        with right.database.read() as connection:
            right.key_cache.poll(connection)
        assert key.secret is not None
        session = sign_in(right.database, right.key_cache, key.secret)
        camera = new_camera(right, "camera-2")
        token = camera.token()
        right.validator.submit(token, CALLER).result(30)
        before = table_sizes(right.database)

        with machine_clock_ahead(WRONG_BY):
            if right.database.dialect_name == "postgresql":
                with opened(kept) as wrong:
                    wrong.start()
                    _work_a_round(wrong.database)
                    wrong.provisioner.provision_device(request_for("camera-3", idempotency_key="3"))
                    sign_in(wrong.database, wrong.key_cache, key.secret)
                    wrong.validator.submit(camera.token(), CALLER).result(30)
            else:
                _work_a_round(right.database)
                right.provisioner.provision_device(request_for("camera-3", idempotency_key="3"))
                sign_in(right.database, right.key_cache, key.secret)
                # Also while the clock is wrong: the camera is not told that it is lost.
                assert right.provisioner.provision_device(request) == first

        assert right.provisioner.provision_device(request) == first
        assert find_session(right.database, session, by_person=True) is not None
        after = table_sizes(right.database)
        assert all(after[each] >= number for each, number in before.items()), (before, after)


def test_what_a_wrong_clock_writes_has_the_databases_time(
    postgres_url: str, tmp_path: Path
) -> None:
    """Threat 45: or the right server would take it for old, or find it in the future."""
    with (
        machine_clock_ahead(-WRONG_BY),
        new_authority(small_settings(tmp_path, postgres_url)) as wrong,
    ):
        wrong.provisioner.provision_device(request_for("camera-1", idempotency_key="key"))
        camera = new_camera(wrong, "camera-2")
        wrong.validator.submit(camera.token(), CALLER).result(30)
        for query in (
            "SELECT created_at FROM idempotent_responses",
            "SELECT validated_at FROM validation_history",
            "SELECT minute FROM validation_counters",
            "SELECT provisioned_at FROM registered_devices",
        ):
            for (when,) in rows_of(wrong.database, query):
                assert abs(when - datetime.now(UTC)) < timedelta(minutes=2), query


def test_an_access_key_ends_by_the_databases_clock(postgres_url: str, tmp_path: Path) -> None:
    """Threat 45: a secret that was rotated counts as long as was said, on every machine."""
    with new_authority(small_settings(tmp_path, postgres_url)) as authority:
        issued = create_key(authority.database, KeyTerms("one", KeyScope.ADMIN), actor=ACTOR)
        rotate_key(authority.database, "one", timedelta(hours=1), actor=ACTOR)
        with authority.database.read() as connection:
            authority.key_cache.poll(connection)
        assert issued.secret is not None
        with machine_clock_ahead(WRONG_BY):
            assert authority.key_cache.find_by_secret(issued.secret) is not None


def test_a_wrong_clock_is_told_once(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """In the log of the server whose clock it is."""
    with new_authority(settings) as authority, caplog.at_level(logging.WARNING):
        watch = ClockCheck(authority.database)
        watch.work(datetime.now(UTC))
        assert authority.database.clock.complaint() is None
        with machine_clock_ahead(WRONG_BY):
            assert authority.database.clock.complaint() is not None
            watch.work(datetime.now(UTC))
            watch.work(datetime.now(UTC))
    assert caplog.text.count("this machine's clock is wrong") == 1


def _work_a_round(database: Database) -> None:
    upkeep = AuditUpkeep(database, retention_days=1, keks=None)
    upkeep.work(datetime.now(UTC) + WRONG_BY)
