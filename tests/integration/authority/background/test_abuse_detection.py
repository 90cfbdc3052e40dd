"""Devices far above their usual rate: who is counted, who is flagged, and who is suspended."""

import logging
import threading
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.access.store import AccessKey, KeyScope
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.background import abuse_detection
from birthmark_sma.authority.background.abuse_detection import (
    AbuseDetection,
    AbuseScan,
    Pause,
    review_flags,
    scan_for_abuse,
)
from birthmark_sma.authority.background.retention import prune
from birthmark_sma.authority.devices import abuse_flags
from birthmark_sma.authority.devices.abuse_flags import FlagMode, ShownFlag, list_flags
from birthmark_sma.authority.devices.abuse_policy import AbusePolicy
from birthmark_sma.config import AbuseMode, Settings
from birthmark_sma.errors import UnknownDeviceError, UnknownFlagError
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.runtime.background_task import BackgroundTask
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import migrate
from birthmark_sma.storage.portable_sql import database_time
from birthmark_sma.storage.schema.activity import device_activity
from tests.support.audit_rows import AuditWriter, judged
from tests.support.authorities import count_activity, execute, new_camera, opened, rows_of
from tests.support.counting import assert_counters_are_those_of_the_trail
from tests.support.databases.postgres import Postgres
from tests.support.devices.actors import ACTOR
from tests.support.devices.acts import reinstate_device, revoke_device, suspend_device
from tests.support.programs.running import wait_until

POLICY = AbusePolicy(factor=10, least=50)
STRANGER = Caller("192.0.2.7")
KNOWN = Caller(
    "192.0.2.8", AccessKey("k1", "aggregator", KeyScope.VALIDATE, datetime(2026, 1, 1, tzinfo=UTC))
)
OTHER = Caller(
    "192.0.2.9", AccessKey("k2", "another", KeyScope.VALIDATE, datetime(2026, 1, 1, tzinfo=UTC))
)


@pytest.fixture(autouse=True)
def at_noon(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """Whatever the time is: let the day that is looked at be one, and not yesterday too."""
    noon = datetime.now(UTC).replace(hour=12)
    monkeypatch.setattr(abuse_detection, "database_time", lambda _: noon)
    return noon


@pytest.fixture
def today(at_noon: datetime) -> date:
    """The day that is looked at."""
    return at_noon.date()


def never(_seconds: float) -> bool:
    """Do not wait, and do not stop."""
    return False


def check(
    database: Database,
    mode: AbuseMode = AbuseMode.FLAG,
    policy: AbusePolicy = POLICY,
    pause: Pause = never,
) -> AbuseScan:
    """Look for abuse once."""
    return scan_for_abuse(database, policy, mode, pause, ACTOR)


def active(database: Database, day: date, pictures: Mapping[str, int], *, passes: int = 0) -> None:
    """Let devices have made so many pictures on a day."""
    rows = [
        {"day": day, "device_serial": name, "passes": passes or number, "pictures": number}
        for name, number in pictures.items()
    ]
    with database.write() as transaction:
        transaction.execute(insert(device_activity), rows)


def flagged(database: Database, *, shadow: bool = False, reviewed: bool = True) -> list[ShownFlag]:
    """Return all flags, those that were put aside too."""
    with database.read() as connection:
        total, found = list_flags(connection, shadow=shadow, reviewed=reviewed, limit=10_000)
    assert total == len(found)
    return found


def names(found: list[ShownFlag]) -> list[str]:
    """Return whose flags these are."""
    return sorted(each.flag.device_serial for each in found)


def status_of(database: Database, device_serial: str) -> str:
    """Return a device's status."""
    [(status,)] = rows_of(
        database, "SELECT status FROM registered_devices WHERE device_serial = :d", d=device_serial
    )
    return str(status)


# --- who is flagged


def test_a_flag_carries_its_counts(database: Database, today: date, at_noon: datetime) -> None:
    active(database, today, {"loud": 301, "busy": 301, "new": 51, "quiet": 50})
    for back in (1, 2, 28):
        active(database, today - timedelta(days=back), {"loud": 30, "busy": 40})
    assert check(database) == AbuseScan(flagged=2)
    [loud, new] = [each.flag for each in flagged(database)]
    assert (loud.device_serial, loud.day, loud.mode) == ("loud", today, FlagMode.FLAG)
    assert (loud.pictures, loud.usual, loud.days_compared, loud.threshold) == (301, 30.0, 3, 300)
    assert (new.device_serial, new.pictures) == ("new", 51)
    assert (new.usual, new.days_compared, new.threshold) == (0, 0, 50)
    assert (loud.flagged_at, loud.reviewed_at) == (at_noon, None)


def test_a_device_is_flagged_once_a_day(database: Database, today: date) -> None:
    """With the counts of that moment, whatever it does afterwards."""
    active(database, today, {"loud": 60})
    assert check(database).flagged == 1
    execute(database, "UPDATE device_activity SET pictures = 9000")
    assert check(database) == AbuseScan()
    assert [each.flag.pictures for each in flagged(database)] == [60]


def test_wrong_clocks_do_not_matter(database: Database, today: date) -> None:
    """Threat 25: what was counted for days to come, or long past, changes nothing."""
    for days in (-3_650, -29, 1, 2, 3_650):
        active(database, today + timedelta(days=days), {"loud": 100_000, "quiet": 100_000})
    active(database, today, {"loud": 51, "quiet": 50})
    assert check(database).flagged == 1
    [loud] = [each.flag for each in flagged(database)]
    assert (loud.device_serial, loud.days_compared) == ("loud", 0)


def test_the_machines_clock_does_not_matter(database: Database, today: date) -> None:
    """Threat 25: only the database's own does."""
    active(database, today, {"loud": 51})
    active(database, today + timedelta(days=40), {"other": 51})
    AbuseDetection(database, POLICY, AbuseMode.FLAG).work(datetime.now(UTC) + timedelta(days=40))
    assert names(flagged(database)) == ["loud"]


def test_the_end_of_a_day_is_looked_at_after_midnight(
    database: Database, today: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a device did in its last minutes is not lost; an hour later that day is over."""
    yesterday = today - timedelta(days=1)
    active(database, yesterday, {"late": 60})
    midnight = datetime(today.year, today.month, today.day, tzinfo=UTC)
    monkeypatch.setattr(abuse_detection, "database_time", lambda _: midnight + timedelta(hours=1))
    assert check(database).flagged == 0
    monkeypatch.setattr(
        abuse_detection, "database_time", lambda _: midnight + timedelta(minutes=59)
    )
    assert check(database).flagged == 1
    assert [each.flag.day for each in flagged(database)] == [yesterday]


def test_a_stop_after_midnight_does_not_begin_the_second_day(
    database: Database, today: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that shuts down scans no further step, whatever day that is of."""
    yesterday = today - timedelta(days=1)
    active(database, yesterday, {"late": 60})
    active(database, today, {"early": 60})
    midnight = datetime(today.year, today.month, today.day, tzinfo=UTC)
    monkeypatch.setattr(abuse_detection, "database_time", lambda _: midnight + timedelta(minutes=1))
    assert check(database, pause=lambda _: True).flagged == 1
    assert [each.flag.day for each in flagged(database)] == [yesterday]
    assert check(database).flagged == 1


def test_many_devices_are_looked_at_in_steps(
    database: Database, today: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever is told to stop does so after one."""
    monkeypatch.setattr(abuse_detection, "_STEP_DEVICES", 7)
    active(database, today, {f"loud-{number:02}": 60 for number in range(30)})
    assert check(database, pause=lambda _: True).flagged == 7
    assert check(database).flagged == 23
    assert len(flagged(database)) == 30


def test_any_serial_can_be_flagged(database: Database, today: date) -> None:
    serials = ['"', "\\", "' OR 1=1 --", "照相机", "📷", " ", "~", "z" * 64, "A", "a", "Ä"]
    active(database, today, dict.fromkeys(serials, 60))
    assert check(database).flagged == len(serials)
    assert set(names(flagged(database))) == set(serials)


def test_whoever_comes_first_flags(database: Database, today: date) -> None:
    """Several programs at once: nobody fails, and no device is flagged twice."""
    active(database, today, {f"loud-{number:03}": 60 for number in range(300)})
    rounds: list[AbuseScan] = []

    def run() -> None:
        rounds.append(check(database))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(rounds) == 4
    assert sum(each.flagged for each in rounds) == 300
    assert len(flagged(database)) == 300


# --- who is counted


def test_only_known_callers_and_first_sights_count(authority: Authority) -> None:
    """Threat 27: no stranger gets a device flagged, nor does a FAIL, a replay, or an aggregator to
    whom the same token was sent as well."""
    database, quiet, loud = authority.database, "quiet", "loud"
    cameras = {name: new_camera(authority, name) for name in (quiet, loud, "gone")}
    suspend_device(database, "gone")
    futures = [authority.validator.submit(cameras[quiet].token(), STRANGER) for _ in range(60)]
    futures += [authority.validator.submit(cameras["gone"].token(), KNOWN) for _ in range(60)]
    futures += [authority.validator.submit(cameras[loud].token(), KNOWN) for _ in range(51)]
    for future in futures:
        future.result(30)
    count_activity(authority)
    assert_counters_are_those_of_the_trail(database)
    with database.read() as connection:
        today = database_time(connection).date()
    # Right after midnight some were counted for the day before, which is looked at as well.
    counted = dict(
        rows_of(
            database,
            "SELECT device_serial, sum(pictures) FROM device_activity GROUP BY device_serial",
        )
    )
    assert counted == {quiet: 0, loud: 51}
    execute(database, "UPDATE device_activity SET day = :today", today=str(today))
    assert check(database).flagged == 1
    assert names(flagged(database)) == [loud]


@pytest.mark.parametrize("repeat", ["replayed", "dual_submission"])
def test_repetitions_do_not_count(database: Database, today: date, repeat: str) -> None:
    """Threat 17: a token counts once, whoever brings it again."""
    at = datetime(today.year, today.month, today.day, 12, tzinfo=UTC)
    rows = [
        row._replace(caller="k1", repeat=repeat if number else None)
        for number, row in enumerate(judged(at, [(Reason.GENUINE, "camera")] * 400))
    ]
    with database.write() as transaction:
        AuditWriter().write(transaction, rows)
    counted = rows_of(database, "SELECT passes, pictures FROM device_activity")
    assert counted == [(400, 1)]
    assert_counters_are_those_of_the_trail(database)
    assert check(database).flagged == 0


def test_strangers_do_not_change_what_is_usual(database: Database, today: date) -> None:
    """Threat 27: days on which only strangers came are no idle days that lower the mean."""
    active(database, today, {"busy": 500})
    active(database, today - timedelta(days=1), {"busy": 60})
    for back in range(2, 29):
        active(database, today - timedelta(days=back), {"busy": 0}, passes=1)
    assert check(database).flagged == 0


# --- what is done about it


@pytest.fixture
def loud(authority: Authority, today: date) -> str:
    """A registered device that is far above its usual rate."""
    new_camera(authority, "loud")
    active(authority.database, today, {"loud": 60})
    return "loud"


def everything_but_flags(database: Database) -> list[list[tuple[Any, ...]]]:
    """Return what stands in the tables that a mode might touch."""
    return [
        rows_of(database, f"SELECT * FROM {table} ORDER BY 1, 2")
        for table in ("registered_devices", "device_activity", "revoked_certificates")
    ]


def test_shadow_mode_changes_nothing_but_its_rows(
    authority: Authority, loud: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is warned, nobody is listed, and the device goes on."""
    before = everything_but_flags(authority.database)
    assert check(authority.database, AbuseMode.SHADOW) == AbuseScan(flagged=1)
    assert everything_but_flags(authority.database) == before
    assert names(flagged(authority.database)) == []
    assert names(flagged(authority.database, shadow=True)) == [loud]
    assert check(authority.database, AbuseMode.SHADOW) == AbuseScan()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_a_shadow_hides_nobody(authority: Authority, loud: str) -> None:
    """Who ends the trial sees the flags of that day."""
    check(authority.database, AbuseMode.SHADOW)
    assert check(authority.database, AbuseMode.FLAG).flagged == 1
    assert names(flagged(authority.database)) == [loud]
    assert check(authority.database, AbuseMode.SHADOW).flagged == 0


def test_a_flag_suspends_nobody(authority: Authority, loud: str) -> None:
    """Without a person, unless so configured: also not once the mode is changed that day."""
    before = everything_but_flags(authority.database)
    assert check(authority.database) == AbuseScan(flagged=1)
    assert check(authority.database, AbuseMode.SUSPEND) == AbuseScan()
    assert everything_but_flags(authority.database) == before


def test_suspend_mode_suspends(
    authority: Authority, today: date, caplog: pytest.LogCaptureFixture
) -> None:
    """With the flag, and the next token FAILs."""
    camera = new_camera(authority, "loud")
    active(authority.database, today, {"loud": 60})
    assert check(authority.database, AbuseMode.SUSPEND) == AbuseScan(flagged=1, suspended=1)
    assert status_of(authority.database, "loud") == "suspended"
    [shown] = flagged(authority.database)
    assert (shown.flag.mode, shown.device_family, shown.status) == (
        FlagMode.SUSPENDED,
        "Test",
        "suspended",
    )
    told = authority.validator.submit(camera.token(), KNOWN).result(30)
    assert told.reason is Reason.DEVICE_SUSPENDED
    assert "device loud is suspended: 60 pictures" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


def test_what_is_not_active_stays_as_it_is(authority: Authority, today: date) -> None:
    """A revocation is final, and who was suspended by a person was not by this."""
    database = authority.database
    for name in ("revoked", "suspended"):
        new_camera(authority, name)
    revoke_device(database, "revoked", "key_compromise")
    suspend_device(database, "suspended")
    active(database, today, {"revoked": 90, "suspended": 90, "unheard-of": 90})
    assert check(database, AbuseMode.SUSPEND) == AbuseScan(flagged=3)
    assert (status_of(database, "revoked"), status_of(database, "suspended")) == (
        "revoked",
        "suspended",
    )
    assert {each.flag.mode for each in flagged(database)} == {FlagMode.FLAG}


def test_a_fault_cannot_take_a_fleet_down(
    authority: Authority,
    settings: Settings,
    at_noon: datetime,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So many an hour, by all programs together, those furthest above first; and it is said."""
    monkeypatch.setattr(abuse_detection, "SUSPENSIONS_AN_HOUR", 3)
    monkeypatch.setattr(abuse_detection, "_STEP_DEVICES", 4)
    database, today = authority.database, at_noon.date()
    for number in range(8):
        new_camera(authority, f"loud-{number}")
    active(database, today, {f"loud-{number}": 60 + number for number in range(8)})
    rounds: list[AbuseScan] = []
    with opened(settings) as other:
        threads = [
            threading.Thread(target=lambda who=who: rounds.append(check(who, AbuseMode.SUSPEND)))
            for who in (database, other.database)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sum(each.suspended for each in rounds) == 3
    assert sum(each.flagged for each in rounds) == 8
    assert "not suspended: more than 3 in an hour look like a fault" in caplog.text
    assert status_of(database, "loud-3") == "suspended"  # the furthest of the first step
    spared = [each.flag.device_serial for each in flagged(database) if each.status == "active"]
    assert len(spared) == 5
    # An hour later it may suspend again, but nobody who was spared.
    monkeypatch.setattr(
        abuse_detection, "database_time", lambda _: at_noon + timedelta(hours=1, seconds=1)
    )
    new_camera(authority, "loud-9")
    active(database, today, {"loud-9": 60})
    assert check(database, AbuseMode.SUSPEND) == AbuseScan(flagged=1, suspended=1)
    assert {status_of(database, name) for name in spared} == {"active"}


def test_flags_of_wrong_clocks_use_nothing_up(authority: Authority, loud: str, today: date) -> None:
    """Threat 25: suspensions dated years ahead do not end suspending for good."""
    database = authority.database
    for back in range(30):
        execute(
            database,
            "INSERT INTO device_flags VALUES ('gone', :day, 'suspended', 1, 1, 1, 1, :at, NULL)",
            day=str(today - timedelta(days=back)),
            at="2096-01-01 00:00:00.000000+00:00",
        )
    assert check(database, AbuseMode.SUSPEND).suspended == 1
    assert status_of(database, loud) == "suspended"


def test_what_was_suspended_and_what_was_flagged_is_one_transaction(
    authority: Authority, loud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No flag, no suspension: a fault between the two leaves nothing behind."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(abuse_flags, "add_flags", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        check(authority.database, AbuseMode.SUSPEND)
    assert status_of(authority.database, loud) == "active"
    assert flagged(authority.database) == []


# --- a person's part


def test_a_device_that_a_person_reinstated_is_left_alone_that_day(
    authority: Authority, loud: str, today: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the flag was of the day before; tomorrow it counts like any other."""
    database = authority.database
    assert check(database, AbuseMode.SUSPEND).suspended == 1
    reinstate_device(database, loud)
    assert check(database, AbuseMode.SUSPEND) == AbuseScan()
    assert [each.flag.reviewed_at is None for each in flagged(database)] == [False]
    execute(database, "UPDATE device_flags SET day = :day", day=str(today - timedelta(days=1)))
    assert check(database, AbuseMode.SUSPEND) == AbuseScan()
    assert status_of(database, loud) == "active"
    tomorrow = datetime.now(UTC).replace(hour=12) + timedelta(days=1)
    monkeypatch.setattr(abuse_detection, "database_time", lambda _: tomorrow)
    active(database, tomorrow.date(), {loud: 5_000})
    assert check(database, AbuseMode.SUSPEND).suspended == 1


@pytest.mark.parametrize("mode", [AbuseMode.SHADOW, AbuseMode.FLAG])
def test_what_was_reviewed_is_left_alone_that_day(
    authority: Authority, loud: str, mode: AbuseMode
) -> None:
    """Whatever mode it was flagged in, and whatever mode comes afterwards."""
    database = authority.database
    check(database, mode)
    assert review_flags(database, loud, actor=ACTOR) == 1
    assert flagged(database, shadow=mode is AbuseMode.SHADOW, reviewed=False) == []
    for later in (AbuseMode.SHADOW, AbuseMode.FLAG, AbuseMode.SUSPEND):
        assert check(database, later) == AbuseScan()
    assert status_of(database, loud) == "active"


def test_there_is_something_to_review(authority: Authority, loud: str, today: date) -> None:
    database = authority.database
    with pytest.raises(UnknownFlagError, match="loud has no flag that waits"):
        review_flags(database, loud, actor=ACTOR)
    check(database)
    with pytest.raises(UnknownFlagError, match="no flag of 2020-02-02"):
        review_flags(database, loud, ACTOR, date(2020, 2, 2))
    assert review_flags(database, loud, ACTOR, today) == 1
    with pytest.raises(UnknownFlagError):
        review_flags(database, loud, actor=ACTOR)
    with pytest.raises(UnknownDeviceError, match="nobody"):
        review_flags(database, "nobody", actor=ACTOR)


def test_flags_go_with_the_days_that_they_are_of(database: Database, today: date) -> None:
    """Retention says how long it is kept who did what."""
    for days_ago in (0, 1, 9):
        day = today - timedelta(days=days_ago)
        active(database, day, {"loud": 60})
        execute(
            database,
            "INSERT INTO device_flags VALUES ('loud', :day, 'flag', 1, 1, 1, 1, :at, NULL)",
            day=str(day),
            at=f"{day} 12:00:00.000000+00:00",
        )
    before = datetime(today.year, today.month, today.day, tzinfo=UTC) - timedelta(days=5)
    prune(database, before, never, keks=None)
    assert len(flagged(database)) == 2


# --- the chore


def test_a_server_looks_by_itself(
    authority: Authority, loud: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and again."""
    execute(authority.database, "UPDATE device_activity SET pictures = 501")
    authority.start()
    wait_until(lambda: names(flagged(authority.database)) == [loud], 20)


def test_off_is_off(database: Database, today: date) -> None:
    active(database, today, {"loud": 1_000_000})
    AbuseDetection(database, POLICY, AbuseMode.OFF).work(datetime.now(UTC))
    assert flagged(database) == []


def test_the_log_names_some(
    database: Database, today: date, caplog: pytest.LogCaptureFixture
) -> None:
    """However many there are."""
    active(database, today, {f"loud-{number:02}": 60 for number in range(50)})
    check(database)
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 21
    assert warnings[-1] == "50 devices in all. To see them: sma devices flagged"


def test_it_survives_an_outage(
    own_postgres: Postgres,
    today: date,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says so in the log, without the URL, and looks again once the database is back."""
    monkeypatch.setattr(BackgroundTask, "again_seconds", 0.1)
    database = open_database(own_postgres.url)
    migrate(database)
    active(database, today, {"loud": 60})
    own_postgres.kill()
    watch = AbuseDetection(database, POLICY, AbuseMode.FLAG)
    watch.start()
    wait_until(lambda: "the abuse-watch waits for the database" in caplog.text, 20)
    assert own_postgres.url not in caplog.text
    own_postgres.restart()
    wait_until(lambda: names(flagged(database)) == ["loud"], 30)
    watch.close()
    database.close()
