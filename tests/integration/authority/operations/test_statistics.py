"""What operators count."""

from datetime import UTC, datetime, timedelta

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.operations.statistics import collect_stats, count_registered
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import open_database
from tests.support.audit_rows import AuditWriter, judged
from tests.support.authorities import TABLES, count_activity, counted_statements, new_camera

FORGERY = CameraToken(bytes(48), 0, 0, bytes(12))


def validate(authority: Authority, token: CameraToken, times: int = 1) -> None:
    """Validate one token several times."""
    for _ in range(times):
        authority.validator.submit(token, Caller("192.0.2.7")).result(30)
    count_activity(authority)


def note(authority: Authority, when: datetime, reason: Reason, times: int = 1) -> None:
    """Count verdicts of another time."""
    with authority.database.write() as transaction:
        AuditWriter().write(transaction, judged(when, [(reason, "old")] * times))


def test_a_new_authority(authority: Authority) -> None:
    """Nothing is counted as nothing, and both verdicts are named."""
    stats = collect_stats(authority.database)
    assert stats.total_devices == count_registered(authority.database) == 0
    assert stats.devices_by_family == {}
    assert stats.key_tables == TABLES
    assert stats.verdicts_24h == {"PASS": 0, "FAIL": 0}
    assert stats.fail_reasons_24h == {}
    assert stats.repeats_24h == {"replayed": 0, "dual_submission": 0}
    assert stats.top_devices == []


def test_the_counts(authority: Authority) -> None:
    """Threat 15: failures count as well as passes, each with its reason."""
    cameras = [
        new_camera(authority, f"camera-{number}", device_family=family)
        for number, family in enumerate(["Pi", "Pi", "Phone"])
    ]
    validate(authority, cameras[0].token(), 2)
    validate(authority, cameras[1].token(), 3)
    validate(authority, FORGERY, 4)
    validate(authority, CameraToken(bytes(48), TABLES, 0, bytes(12)))
    stats = collect_stats(authority.database)
    assert stats.total_devices == count_registered(authority.database) == 3
    assert stats.devices_by_family == {"Pi": 2, "Phone": 1}
    assert stats.verdicts_24h == {"PASS": 5, "FAIL": 5}
    assert stats.fail_reasons_24h == {"not_opened": 4, "unknown_table": 1}
    assert stats.top_devices == [("camera-1", 3), ("camera-0", 2)]


def test_a_day_is_24_hours(authority: Authority) -> None:
    """Threat 25: what is older does not count, in whatever zone the machine is."""
    now = datetime.now(UTC)
    note(authority, now - timedelta(hours=24, minutes=1), Reason.GENUINE)
    note(authority, now - timedelta(hours=23, minutes=59), Reason.GENUINE)
    note(authority, now - timedelta(days=400), Reason.NOT_OPENED)
    stats = collect_stats(authority.database)
    assert stats.verdicts_24h == {"PASS": 1, "FAIL": 0}
    assert timedelta(hours=24) <= stats.until - stats.since < timedelta(hours=24, minutes=1)
    assert stats.since.second == stats.since.microsecond == 0
    for time in (stats.since, stats.until):
        assert time.utcoffset() == timedelta(0)
    assert now <= stats.until <= datetime.now(UTC)


def test_hours(authority: Authority) -> None:
    """Twenty-four that have begun, the oldest first, each with both verdicts; empty ones too."""
    now = datetime.now(UTC)
    this_hour = now.replace(minute=0, second=0, microsecond=0)
    note(authority, this_hour, Reason.GENUINE, 3)
    note(authority, this_hour - timedelta(microseconds=1), Reason.NOT_OPENED, 2)
    note(authority, this_hour - timedelta(hours=23), Reason.UNKNOWN_DEVICE, 5)
    note(authority, this_hour - timedelta(hours=23, seconds=1), Reason.GENUINE, 7)
    hours = {hour.begins: hour.verdicts for hour in collect_stats(authority.database).hours}
    assert list(hours) == [this_hour - timedelta(hours=ago) for ago in range(23, -1, -1)]
    assert hours.pop(this_hour) == {"PASS": 3, "FAIL": 0}
    assert hours.pop(this_hour - timedelta(hours=1)) == {"PASS": 0, "FAIL": 2}
    assert hours.pop(this_hour - timedelta(hours=23)) == {"PASS": 0, "FAIL": 5}
    assert set(map(tuple, map(dict.values, hours.values()))) == {(0, 0)}


def test_the_most_active_are_those_of_two_days(authority: Authority) -> None:
    """Today and yesterday (UTC) together; what is older does not count, and neither does a FAIL."""
    now = datetime.now(UTC)
    for days, times in ((0, 2), (1, 3), (2, 50)):
        note(authority, now - timedelta(days=days), Reason.GENUINE, times)
    note(authority, now, Reason.DEVICE_REVOKED, 9)
    assert collect_stats(authority.database).top_devices == [("old", 5)]


def test_nobody_reads_the_audit_trail(authority: Authority) -> None:
    """Figures come from counters alone, whatever the size of history and register."""
    validate(authority, new_camera(authority, "camera").token())
    with counted_statements(authority.database) as statements:
        collect_stats(authority.database)
        count_registered(authority.database)
    assert len(statements) > 3
    for statement in statements:
        assert "validation_history" not in statement
        assert "registered_devices" not in statement


def test_ten_devices_at_most(authority: Authority) -> None:
    """The most active ones, ties in the order of their serials."""
    for number in range(12):
        validate(authority, new_camera(authority, f"camera-{number:02}").token(), 1 + number // 6)
    top = collect_stats(authority.database).top_devices
    assert top == [(f"camera-{number:02}", 2) for number in range(6, 12)] + [
        (f"camera-{number:02}", 1) for number in range(4)
    ]


def test_an_outage_is_not_zero() -> None:
    """Threat 26: without a database there is no count, and so nothing that looks like health."""
    database = open_database("postgresql://sma:x@127.0.0.1:1/sma")
    for count in (collect_stats, count_registered):
        with pytest.raises(DatabaseUnavailableError):
            count(database)
    database.close()
