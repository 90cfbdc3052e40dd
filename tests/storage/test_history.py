"""The audit trail: whole rows, and counts over a span of time."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from birthmark_sma.storage import history
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.history import AuditRow
from birthmark_sma.storage.schema import validation_history

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
PASS = AuditRow(b"\x00" + b"\xff" * 47, 3, 7, "PASS", "genuine", "device", NOW, "192.0.2.7")
FAIL = AuditRow(bytes(48), 2**31 - 1, 2**31 - 1, "FAIL", "not_opened", None, NOW, None)


def append(database: Database, *rows: AuditRow) -> None:
    """Write rows."""
    with database.write() as transaction:
        history.append(transaction, rows)


def test_rows_come_back_as_they_went_in(database: Database) -> None:
    """In the order of writing, with ids that grow, and with the largest numbers of the wire."""
    longest = FAIL._replace(
        request_ip="2001:db8:ffff:ffff:ffff:ffff:255.255.255.255".ljust(45, "0")
    )
    append(database, PASS, FAIL, longest)
    append(database, PASS)
    with database.read() as connection:
        rows = connection.execute(select(validation_history).order_by("id")).all()
    names = [column.name for column in validation_history.columns][1:]
    assert [tuple(getattr(row, name) for name in names) for row in rows] == [
        tuple(row) for row in (PASS, FAIL, longest, PASS)
    ]
    ids = [row.id for row in rows]
    assert ids == sorted(set(ids))


def test_a_thousand_rows_in_one_transaction(database: Database) -> None:
    """A full batch is written whole."""
    append(database, *[PASS] * 1_000)
    with database.read() as connection:
        assert history.count_since(connection, NOW) == {"PASS": {"genuine": 1_000}, "FAIL": {}}


def test_counts_begin_at_their_time(database: Database) -> None:
    """A row of that very moment counts, one a microsecond older does not."""
    before = NOW - timedelta(microseconds=1)
    append(
        database,
        PASS,
        PASS._replace(validated_at=before),
        FAIL,
        FAIL._replace(reason="unknown_device", validated_at=NOW + timedelta(days=1)),
        FAIL._replace(validated_at=before),
    )
    with database.read() as connection:
        assert history.count_since(connection, NOW) == {
            "PASS": {"genuine": 1},
            "FAIL": {"not_opened": 1, "unknown_device": 1},
        }


def test_nothing_counted(database: Database) -> None:
    """Both results are named where there is nothing to count."""
    with database.read() as connection:
        assert history.count_since(connection, NOW) == {"PASS": {}, "FAIL": {}}
        assert history.most_active_since(connection, NOW, limit=10) == []


def test_the_most_active_devices(database: Database) -> None:
    """Threat 27: only PASS counts, as anybody can cause a FAIL; ties go by serial."""
    rows = [PASS._replace(device_serial=name) for name in ("b", "a", "c", "c", "c", "b", "a")]
    rows += [FAIL._replace(device_serial="d", reason="device_revoked")] * 9
    rows += [PASS._replace(device_serial="e", validated_at=NOW - timedelta(seconds=1))] * 9
    append(database, *rows)
    with database.read() as connection:
        ranked = history.most_active_since(connection, NOW, limit=10)
        assert ranked == [("c", 3), ("a", 2), ("b", 2)]
        assert history.most_active_since(connection, NOW, limit=2) == ranked[:2]
