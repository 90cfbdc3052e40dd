"""A judged batch, written down: rows, counters and activity at once."""

from datetime import UTC, datetime

import pytest

from birthmark_sma.authority.validation.audit_writer import AuditWriter
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.storage.engine import Database
from tests.support.audit_rows import judged
from tests.support.authorities import counted_statements, rows_of
from tests.support.counting import assert_counters_are_those_of_the_trail

NOW = datetime(2026, 3, 29, 23, 30, 59, 999_999, tzinfo=UTC)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 255, 256, 257, 1_000])
def test_batches_of_any_size(database: Database, size: int) -> None:
    """Each row is there once, and counted once, whatever statements a size is made up of."""
    rows = judged(NOW, [(Reason.GENUINE, f"device-{number % 7}") for number in range(size)])
    rows = [row._replace(table_id=number) for number, row in enumerate(rows)]
    with database.write() as transaction:
        AuditWriter().write(transaction, rows)
    found = rows_of(database, "SELECT table_id FROM validation_history")
    assert sorted(table_id for (table_id,) in found) == list(range(size))
    assert assert_counters_are_those_of_the_trail(database) == size


def test_every_reason_costs_the_same_statements(database: Database) -> None:
    """Threat 18: what was judged shows neither in their number nor in their text."""
    trail = AuditWriter()
    crowd = judged(NOW, [(Reason.GENUINE, f"device-{number:02}") for number in range(30)])
    for _ in range(3):  # until the list of the busiest is full, and read
        with database.write() as transaction:
            trail.write(transaction, crowd * 2)
    with database.write() as transaction:
        trail.write(transaction, crowd)
    costs = set()
    for reason in Reason:
        with database.write() as transaction, counted_statements(database) as statements:
            trail.write(transaction, judged(NOW, [(reason, "a device")]))
        costs.add(tuple(each for each in statements if not each.startswith("BEGIN")))
    assert len(costs) == 1
    assert len(costs.pop()) == (1 if database.dialect_name == "postgresql" else 5)
