"""Retention: exactly what is older goes, while validations go on."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import psycopg
import pytest

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.background import pruning, retention
from birthmark_sma.authority.background.retention import Pruned, oldest_kept, preview_prune, prune
from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.protocol.camera_token import CameraToken
from birthmark_sma.protocol.replay import SeenToken
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage import partitions
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import migrate
from tests.support.audit_rows import AuditWriter, append_rows
from tests.support.authorities import count_activity, new_camera, rows_of
from tests.support.counting import assert_counters_are_those_of_the_trail
from tests.support.days import DAY, today

MICROSECOND = timedelta(microseconds=1)


def before() -> datetime:
    """Return the start of the days that are kept."""
    return today() - 3 * DAY


def at_once(_seconds: float) -> bool:
    """Do not pause."""
    return False


def note(database: Database, *times: datetime) -> None:
    """Write rows of these times as a validation does, with their counts."""
    row = AuditRow(bytes(48), 1, 1, "PASS", "genuine", "device", today(), None)
    trail = AuditWriter()
    with database.write() as transaction:
        for at in times:
            trail.write(transaction, [row._replace(validated_at=at)])


def make_day(database: Database, day: datetime) -> None:
    """Make the partitions of a day and those after it; SQLite has none."""
    with database.write() as transaction:
        partitions.create_future_partitions(transaction, day.date())


def times_left(database: Database) -> list[datetime]:
    """Return the times of all rows, oldest first."""
    rows = rows_of(database, "SELECT validated_at FROM validation_history ORDER BY validated_at")
    return [
        datetime.fromisoformat(at) if isinstance(at, str) else at.astimezone(UTC) for (at,) in rows
    ]


def test_whole_days_are_kept() -> None:
    """Threat 25: days are those of UTC, in whatever zone the clock is."""
    zone = timezone(timedelta(hours=-8))
    now = datetime(2026, 3, 1, 20, 30, tzinfo=zone)  # the second of March in UTC
    assert oldest_kept(1, now) == datetime(2026, 3, 1, tzinfo=UTC)
    assert oldest_kept(90, now) == datetime(2025, 12, 2, tzinfo=UTC)


@pytest.mark.parametrize("partitioned", [True, False])
def test_exactly_what_is_older_goes(database: Database, partitioned: bool) -> None:
    """To the microsecond, whether days have partitions or lie in the default, counters included."""
    if partitioned:
        make_day(database, today() - 10 * DAY)
    older = [before() - 300 * DAY, before() - 7 * DAY, before() - DAY, before() - MICROSECOND]
    kept = [before(), before() + MICROSECOND, today(), today() + 300 * DAY]
    note(database, *older, *kept)
    foreseen = preview_prune(database, before())
    assert times_left(database) == older + kept
    pruned = prune(database, before(), at_once, keks=None)
    assert times_left(database) == kept
    assert assert_counters_are_those_of_the_trail(database) == len(kept)
    assert rows_of(database, "SELECT count(*) FROM busiest_devices") == [(3,)]
    assert pruned == foreseen
    if partitioned and database.dialect_name == "postgresql":
        days = [today() - ago * DAY for ago in range(10, 3, -1)]
        assert pruned.partitions == tuple(f"validation_history_{day:%Y%m%d}" for day in days)
        assert pruned.rows == 1
    else:
        assert pruned == Pruned((), 4)
    assert (
        prune(database, before(), at_once, keks=None)
        == preview_prune(database, before())
        == Pruned((), 0)
    )


def test_many_rows_go_in_steps(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is durable by itself; a run that is told to stop goes on where it stopped."""
    monkeypatch.setattr(retention, "_STEP_ROWS", 10)
    note(database, *[before() - 300 * DAY + number * MICROSECOND for number in range(35)], today())
    pauses = []

    def stop(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == len(pruning.FIGURES) + 2

    assert prune(database, before(), stop, keks=None).rows == 20
    assert len(times_left(database)) == 16
    assert prune(database, before(), at_once, keks=None).rows == 15
    assert times_left(database) == [today()]
    assert min(pauses) > 0


def test_two_at_once_share_the_work(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers with the same retention: every row goes once, and nobody fails."""
    monkeypatch.setattr(retention, "_STEP_ROWS", 10)
    make_day(database, today() - 10 * DAY)
    note(database, *[before() - 300 * DAY + number * MICROSECOND for number in range(200)])
    note(database, before() - DAY, today())
    results: list[Pruned | Exception] = []
    start = threading.Barrier(3)

    def run() -> None:
        start.wait(30)
        try:
            results.append(prune(database, before(), at_once, keks=None))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(isinstance(each, Pruned) for each in results), results
    prune(database, before(), at_once, keks=None)
    assert times_left(database) == [today()]
    single = 1 if database.dialect_name == "sqlite" else 0
    assert sum(each.rows for each in results if isinstance(each, Pruned)) == 200 + single


def test_validations_go_on(authority: Authority) -> None:
    """Twenty thousand rows go while tokens are validated: every token gets its PASS, and soon."""
    make_day(authority.database, today() - 10 * DAY)
    row = AuditRow(bytes(48), 1, 1, "FAIL", "not_opened", None, today(), None)
    for days in (4, 5, 300):
        old = [row._replace(validated_at=today() - days * DAY)] * 7_000
        with authority.database.write() as transaction:
            append_rows(transaction, old)
    camera = new_camera(authority, "camera")
    pausing = threading.Event()
    pruning = threading.Thread(
        target=prune,
        args=(authority.database, before(), pausing.wait),
        kwargs={"keks": None},
    )
    pruning.start()
    answered, slowest = validated_while(authority, camera.token, pruning)
    assert answered > 20
    assert slowest < 1
    assert rows_of(authority.database, "SELECT count(*) FROM validation_history") == [(answered,)]
    count_activity(authority)
    assert assert_counters_are_those_of_the_trail(authority.database) == answered


def validated_while(
    authority: Authority, token: Callable[[], CameraToken], thread: threading.Thread
) -> tuple[int, float]:
    """Validate until a thread ends; return how many were answered, and the slowest in seconds."""
    answered, slowest = 0, 0.0
    while thread.is_alive():
        began = time.monotonic()
        validation = authority.validator.submit(token(), Caller(None)).result(30)
        slowest = max(slowest, time.monotonic() - began)
        assert validation.verdict is Verdict.PASS
        answered += 1
        time.sleep(0.005)
    return answered, slowest


def test_a_long_query_delays_retention_and_nobody_else(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that is being read stays until the query ends; rows are written meanwhile."""
    monkeypatch.setattr(retention, "_DROP_PAUSE_SECONDS", 0.1)
    database = open_database(postgres_url)
    migrate(database)
    make_day(database, today() - 10 * DAY)
    note(database, before() - DAY)
    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT count(*) FROM validation_history")
        with pytest.raises(DatabaseUnavailableError):
            prune(database, before(), threading.Event().wait, keks=None)
        note(database, today())
        assert len(times_left(database)) == 2
    assert prune(database, before(), at_once, keks=None).partitions != ()
    assert times_left(database) == [today()]
    database.close()


def sight(database: Database, at: datetime, number: int) -> None:
    """Let a token be seen for the first time, and again."""
    sighting = SeenToken(number.to_bytes(16, "big"), "local")
    with database.write() as transaction:
        replay_ledger.note(make_store(database), transaction, [sighting, sighting], at)


def test_the_ledger_goes_with_the_trail(database: Database) -> None:
    """To the microsecond; a token that is forgotten counts as new again."""
    for number, at in enumerate([before() - 90 * DAY, before() - MICROSECOND, before(), today()]):
        sight(database, at, number)
    prune(database, before(), at_once, keks=None)
    for table in ("sighted_tokens", "resubmitted_tokens"):
        kept = [bytes(each) for (each,) in rows_of(database, f"SELECT digest FROM {table}")]
        assert sorted(kept) == [(2).to_bytes(16, "big"), (3).to_bytes(16, "big")]
    prune(database, before(), at_once, keks=None)
    assert rows_of(database, "SELECT count(*) FROM sighted_tokens") == [(2,)]


def test_a_large_ledger_goes_in_steps(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """In as many looks and steps as it takes; cut off, the next run goes on."""
    monkeypatch.setattr(retention, "_LEDGER_STEP", 7)
    monkeypatch.setattr(retention, "_LEDGER_LOOK", 20)
    for number in range(50):
        sight(database, before() - DAY, number)
    pauses = iter([*[False] * (len(pruning.FIGURES) + 2), True])
    prune(database, before(), lambda _: next(pauses), keks=None)
    assert rows_of(database, "SELECT count(*) FROM sighted_tokens") == [(50 - 7 - 7 - 6,)]
    prune(database, before(), at_once, keks=None)
    assert rows_of(database, "SELECT count(*) FROM sighted_tokens") == [(0,)]
    assert rows_of(database, "SELECT count(*) FROM resubmitted_tokens") == [(0,)]
