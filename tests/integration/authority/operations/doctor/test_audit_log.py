"""The audit trail against its counters: what was tampered with is found, and nothing else is."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.background import retention
from birthmark_sma.authority.background.privacy import coarsening
from birthmark_sma.authority.background.retention import oldest_kept
from birthmark_sma.authority.operations.doctor import audit_log
from birthmark_sma.authority.operations.doctor.audit_log import check_audit_log
from birthmark_sma.authority.operations.doctor.database import check_privacy
from birthmark_sma.authority.operations.doctor.findings import Finding, State
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import Database
from tests.support.audit_rows import AuditWriter, append_rows, judged
from tests.support.authorities import execute, new_camera, small_settings
from tests.support.days import DAY, today

REASONS = [
    (Reason.GENUINE, "camera-1"),
    (Reason.GENUINE, "camera-1"),
    (Reason.GENUINE, "camera-2"),
    (Reason.NOT_OPENED, None),
    (Reason.UNKNOWN_DEVICE, None),
]


def noon() -> datetime:
    """Return the noon of this day."""
    return today() + DAY / 2


def look(database: Database, *, whole: bool = False) -> list[Finding]:
    return list(check_audit_log(database, None if whole else audit_log.ROWS))


def worst(findings: list[Finding]) -> set[State]:
    return {each.state for each in findings}


@pytest.fixture
def trail(database: Database) -> Database:
    """Three days of five rows each."""
    with database.write() as transaction:
        for ago in range(3):
            at = noon() - ago * DAY
            AuditWriter().write(transaction, judged(at, REASONS[:3]))
            AuditWriter().write(transaction, judged(at + timedelta(minutes=3), REASONS[3:]))
    return database


def test_an_untouched_trail_agrees(trail: Database) -> None:
    [finding] = look(trail)
    assert finding.state is State.WELL
    assert "15 rows of 3 days" in finding.sentence


def test_an_empty_trail_agrees(database: Database) -> None:
    assert worst(look(database)) == {State.WELL}


TAMPERED = {
    "deleted": (
        "DELETE FROM validation_history WHERE reason = 'not_opened' AND {yesterday}",
        "not_opened",
    ),
    "another reason": (
        "UPDATE validation_history SET reason = 'device_revoked' WHERE reason = 'not_opened'"
        " AND {yesterday}",
        "not_opened",
    ),
    "doubled": (
        "INSERT INTO validation_history (encrypted_nuc_hash, table_id, key_index,"
        " validation_result, reason, device_serial, validated_at) SELECT encrypted_nuc_hash,"
        " table_id, key_index, validation_result, reason, device_serial, validated_at"
        " FROM validation_history WHERE reason = 'unknown_device' AND {yesterday}",
        "unknown_device",
    ),
    "a FAIL made a PASS": (
        "UPDATE validation_history SET validation_result = 'PASS', reason = 'genuine',"
        " device_serial = 'camera-1' WHERE reason = 'not_opened' AND {yesterday}",
        "genuine",
    ),
    "the verdict alone": (
        "UPDATE validation_history SET validation_result = 'PASS' WHERE reason = 'not_opened'"
        " AND {yesterday}",
        "does not match",
    ),
    "another device": (
        "UPDATE validation_history SET device_serial = 'camera-3' WHERE device_serial = 'camera-2'"
        " AND {yesterday}",
        "genuine",
    ),
    "called a repeat": (
        "UPDATE validation_history SET repeat = 'same_caller' WHERE reason = 'not_opened'"
        " AND {yesterday}",
        "repeat same_caller",
    ),
    "moved to another day": (
        "UPDATE validation_history SET validated_at = :never WHERE reason = 'not_opened'"
        " AND {yesterday}",
        "not_opened",
    ),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_row_that_was_tampered_with_is_found(trail: Database, how: str) -> None:
    """Threat 46: critical, with day and reason."""
    statement, reason = TAMPERED[how]
    yesterday = "validated_at >= :begins AND validated_at < :ends"
    values = {
        "begins": noon() - DAY,
        "ends": noon(),
        "never": datetime(2001, 1, 1, 12, tzinfo=UTC),
    }
    if trail.dialect_name == "sqlite":
        written = {name: f"{at:%Y-%m-%d %H:%M:%S.%f}+00:00" for name, at in values.items()}
    else:
        written = {name: at.isoformat() for name, at in values.items()}
    execute(trail, statement.format(yesterday=yesterday), **_used(statement, written))
    bad = [each for each in look(trail) if each.state is State.CRITICAL]
    assert bad
    assert all(f"{noon() - DAY:%Y-%m-%d}" in each.sentence for each in bad)
    assert any(reason in each.sentence for each in bad), bad


def _used(statement: str, values: dict[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in values.items() if name != "never" or ":never" in statement
    }


def test_the_first_day_is_compared_too(trail: Database) -> None:
    """Threat 46: also where a row was given a time before all counters."""
    execute(
        trail,
        "UPDATE validation_history SET validated_at = :never WHERE reason = 'not_opened'",
        never="2001-01-01 12:00:00.000000+00:00",
    )
    days = {
        f"{noon() - ago * DAY:%Y-%m-%d}"
        for ago in range(3)
        if any(f"{noon() - ago * DAY:%Y-%m-%d}" in each.sentence for each in look(trail))
    }
    assert len(days) == 3


def test_a_pruned_trail_agrees(trail: Database) -> None:
    """Whole days are gone, with their counters."""
    retention.prune(trail, retention.midnight(noon()), lambda _: False, keks=None)
    [finding] = look(trail)
    assert finding.state is State.WELL
    assert "5 rows of 1 day agree" in finding.sentence


@pytest.mark.parametrize("steps", range(1, 12))
def test_a_pruning_that_was_cut_off_is_no_alarm(
    trail: Database, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever step: counters go first."""
    monkeypatch.setattr(retention, "_STEP_ROWS", 1)
    monkeypatch.setattr(retention, "_LEDGER_STEP", 1)
    left = iter(range(steps))
    retention.prune(
        trail, retention.midnight(noon()), lambda _: next(left, None) is None, keks=None
    )
    assert State.CRITICAL not in worst(look(trail))


def test_rows_from_before_there_were_counters(trail: Database) -> None:
    """They are said not to be compared."""
    with trail.write() as transaction:
        append_rows(transaction, judged(noon() - 400 * DAY, REASONS))
    findings = look(trail)
    assert worst(findings) == {State.WELL, State.NOTED}
    assert any("no counters" in each.sentence for each in findings)


def test_rows_outside_of_their_days_partitions(trail: Database) -> None:
    """As a wrong clock writes them: counted like all others."""
    with trail.write() as transaction:
        AuditWriter().write(transaction, judged(noon() + 4000 * DAY, REASONS))
    assert worst(look(trail)) == {State.WELL}


def test_a_long_trail_is_read_in_part(trail: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cost is bounded, and what was not looked at is said."""
    monkeypatch.setattr(audit_log, "ROWS", 12)
    execute(
        trail,
        "DELETE FROM validation_history WHERE validated_at < :before",
        before=f"{noon() - DAY - DAY / 2:%Y-%m-%d %H:%M:%S.%f}+00:00",
    )
    findings = look(trail)
    assert worst(findings) == {State.WELL, State.NOTED}
    assert "10 rows of 2 days" in findings[0].sentence
    assert f"before {noon() - DAY:%Y-%m-%d} were not compared" in findings[1].sentence
    assert "--whole-trail" in (findings[1].remedy or "")
    assert State.CRITICAL in worst(look(trail, whole=True))


def test_servers_may_run(authority: Authority) -> None:
    """What is validated meanwhile is in both, or in neither."""
    camera = new_camera(authority, "camera-1")
    caller = Caller("192.0.2.1")
    under_way = [authority.validator.submit(camera.token(), caller) for _ in range(400)]
    while not all(each.done() for each in under_way):
        assert worst(look(authority.database)) == {State.WELL}
    assert worst(look(authority.database)) == {State.WELL}


def test_rows_that_are_exact_for_too_long(trail: Database, tmp_path: Path) -> None:
    """A warning that names the command, until the rows are coarse. Nothing without the setting."""
    with trail.write() as transaction:
        AuditWriter().write(transaction, judged(noon() - 5 * DAY, REASONS))
    settings = small_settings(tmp_path, None)
    private = settings.model_copy(update={"privacy_days": 2})
    assert list(check_privacy(trail, settings, noon())) == []
    [finding] = check_privacy(trail, private, noon())
    assert finding.state is State.WARNING
    assert f"{noon() - 5 * DAY:%Y-%m-%d}" in finding.sentence
    assert "sma history coarsen" in (finding.remedy or "")
    coarsening.coarsen(trail, oldest_kept(2, noon()), lambda _seconds: False, keks=None)
    [finding] = check_privacy(trail, private, noon())
    assert finding.state is State.WELL
