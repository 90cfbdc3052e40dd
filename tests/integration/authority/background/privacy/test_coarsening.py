"""Old rows lose their exact time and address, and the chain still proves every row."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from birthmark_sma.authority.audit_chain.batches import commit_to
from birthmark_sma.authority.audit_chain.earlier import chain_earlier
from birthmark_sma.authority.audit_chain.export import load_export, write_export
from birthmark_sma.authority.audit_chain.keys import find_verifier
from birthmark_sma.authority.audit_chain.verification.database_reader import DatabaseReader
from birthmark_sma.authority.audit_chain.verification.findings import Verified
from birthmark_sma.authority.audit_chain.verification.trail import verify
from birthmark_sma.authority.background.privacy import audit_rows, coarsening
from birthmark_sma.authority.background.privacy.ledger import DROPPED_ADDRESS
from birthmark_sma.authority.background.retention import midnight
from birthmark_sma.authority.validation.audit_search import AuditEntry, AuditFilter, Cursor, search
from birthmark_sma.authority.validation.records import LedgerEntry
from birthmark_sma.authority.validation.replay_ledger import note_lost_answers
from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.authority.validation.validation_details import find_validation
from birthmark_sma.errors import DatabaseUnavailableError
from birthmark_sma.protocol.replay import SeenToken
from birthmark_sma.protocol.verdict import Verdict
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.schema.validations import validation_history as history
from tests.support.authorities import execute, rows_of
from tests.support.databases.chained_trail import ChainedTrail
from tests.support.days import current_time

ALL = """SELECT id, validated_at, request_ip, time_and_ip_commitment FROM validation_history
         ORDER BY id"""
SALTS = "SELECT count(*) FROM audit_batches WHERE kind = 'validations' AND salt IS NOT NULL"


def go_on(_seconds: float) -> bool:
    """Pause for no time, and do not stop."""
    return False


@pytest.fixture
def trail(database: Database, tmp_path: Path) -> ChainedTrail:
    """Two writers with batches of three days ago, yesterday and today, signed."""
    trail = ChainedTrail(database, tmp_path)
    for days_ago in (3, 1, 0):
        for writer in ("aa", "bb", "aa"):
            trail.validate(writer, days_ago)
    trail.checkpoint()
    assert trail.verify() == []
    return trail


@pytest.fixture
def before() -> datetime:
    """Return a midnight: the rows of three days ago are older, the others are not."""
    return midnight(current_time()) - timedelta(days=2)


def facts(database: Database) -> list[Any]:
    """Return time, address and commitment of all rows, by id."""
    return [(each.validated_at, *each[2:]) for each in _typed(database)]


def _typed(database: Database) -> list[Any]:
    row = history.c
    query = select(row.id, row.validated_at, row.request_ip, row.time_and_ip_commitment)
    with database.read() as connection:
        return list(connection.execute(query.order_by(row.id)))


def split(database: Database, before: datetime) -> tuple[list[Any], list[Any]]:
    """Return the rows from before a time, and the others."""
    rows = _typed(database)
    old = [each for each in rows if each.validated_at < before]
    return old, [each for each in rows if each not in old]


def test_what_is_older_is_coarsened(trail: ChainedTrail, before: datetime) -> None:
    """Exactly that, with its salts; and the trail is clean afterwards."""
    _, young = split(trail.database, before)
    salts = rows_of(trail.database, SALTS)[0][0]
    done = coarsening.coarsen(trail.database, before, go_on, keks=trail.keks)
    assert (done.rows, done.days, done.is_done) == (12, 1, True)
    old, others = split(trail.database, before)
    assert others == young
    assert len(old) == 12
    for _, time, address, commitment in old:
        assert (time.minute, time.second, time.microsecond) == (0, 0, 0)
        assert address is None
        assert len(commitment) == 32
    assert rows_of(trail.database, SALTS)[0][0] == salts - 3
    found, verified = trail.verify_and_count()
    assert found == []
    assert verified.rows == 36
    assert coarsening.find_due(trail.database, before) is None
    assert coarsening.coarsen(trail.database, before, go_on, keks=trail.keks).rows == 0


def test_rows_that_somebody_else_coarsened(trail: ChainedTrail, before: datetime) -> None:
    """Whoever cannot sign it drops no time and no address unnoticed."""
    assert coarsening.coarsen(trail.database, before, go_on, keks=None).rows == 12
    found = {(each.fault, each.detail) for each in trail.verify()}
    assert found == {("changed", "or all of its rows")}
    assert len(trail.verify()) == 3  # batches


def test_without_a_key_yet(trail: ChainedTrail, before: datetime) -> None:
    """As after a migration, before a server ran: the key is made, and then it signs."""
    for table in ("audit_checkpoints", "audit_keys"):
        execute(trail.database, f"DELETE FROM {table}")
    assert coarsening.coarsen(trail.database, before, go_on, keks=trail.keks).rows == 12
    assert trail.verify() == []


def test_it_is_verifiable_after_each_step(trail: ChainedTrail, before: datetime) -> None:
    """Also if it is stopped there; the next run does the rest."""
    steps = 0
    while True:
        done = coarsening.coarsen(trail.database, before, lambda _: True, keks=trail.keks)
        assert trail.verify() == []
        if done.is_done:
            break
        steps += 1
    assert 2 <= steps <= 3  # one of each chain and hour, or two if the hour ended meanwhile
    assert coarsening.find_due(trail.database, before) is None


def test_a_failure_within_a_step_changes_nothing(
    trail: ChainedTrail, before: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a batch and its salt go together."""
    untouched = facts(trail.database)

    def fail(*_: object) -> None:
        raise DatabaseUnavailableError("the power is gone")

    monkeypatch.setattr(audit_rows, "drop_salts", fail)
    with pytest.raises(DatabaseUnavailableError):
        coarsening.coarsen(trail.database, before, go_on, keks=trail.keks)
    assert facts(trail.database) == untouched
    assert trail.verify() == []


ROW_CHANGES = {
    "encrypted_nuc_hash": "token_digest",
    "table_id": "table_id + 1",
    "key_index": "key_index + 1",
    "validation_result": "'PASS'",
    "reason": "'genuine'",
    "device_serial": "'another'",
    "request_ip": "'192.0.2.7'",
    "caller": "''",
    "repeat": "NULL",
    "request_id": "'another'",
    "batch_position": "0",
    "token_digest": "encrypted_nuc_hash",
    "waited_us": "NULL",
    "time_and_ip_commitment": "token_digest",
}


@pytest.mark.parametrize("column", ROW_CHANGES)
def test_a_row_that_is_changed_afterwards(
    trail: ChainedTrail, before: datetime, column: str
) -> None:
    """Threat 46: it is named, whatever column it is, also the commitment."""
    coarsening.coarsen(trail.database, before, go_on, keks=trail.keks)
    changed = rows_of(trail.database, ALL)[1][0]
    execute(
        trail.database,
        f"UPDATE validation_history SET {column} = {ROW_CHANGES[column]} WHERE id = {changed}",
    )
    assert [each[:2] for each in trail.verify()] == [("changed", f"row {changed}")]


@pytest.mark.parametrize(
    "move", [lambda at: at + timedelta(minutes=1), lambda at: at.replace(hour=(at.hour + 1) % 24)]
)
def test_a_time_that_is_changed_afterwards(
    trail: ChainedTrail, before: datetime, move: Callable[[datetime], datetime]
) -> None:
    """Threat 46: no other time than the hour of the batch, although no commitment covers it."""
    coarsening.coarsen(trail.database, before, go_on, keks=trail.keks)
    number, time, *_ = _typed(trail.database)[1]
    with trail.database.write() as transaction:
        transaction.execute(
            update(history).where(history.c.id == number).values(validated_at=move(time))
        )
    assert [each[:2] for each in trail.verify()] == [("changed", f"row {number}")]


def test_an_exact_row_of_another_does_not_become_coarse(trail: ChainedTrail) -> None:
    """Threat 46: a commitment alone is found while the batch has its salt."""
    number, time, *_ = _typed(trail.database)[1]
    hour = time.replace(minute=0, second=0, microsecond=0)
    salt = rows_of(
        trail.database,
        f"SELECT salt FROM audit_batches WHERE {number} BETWEEN first_id AND first_id + rows - 1"
        " AND kind = 'validations'",
    )[0][0]
    with trail.database.write() as transaction:
        transaction.execute(
            update(history)
            .where(history.c.id == number)
            .values(
                validated_at=hour,
                request_ip=None,
                time_and_ip_commitment=commit_to(bytes(salt), time, "192.0.2.7"),
            )
        )
    assert [each[:2] for each in trail.verify()] == [("changed", f"row {number}")]


def test_rows_from_before_the_chain(database: Database, tmp_path: Path, before: datetime) -> None:
    """A batch of the chain `earlier` has a day."""
    trail = ChainedTrail(database, tmp_path)
    for _ in range(3):
        trail.validate("aa", days_ago=4)
    trail.validate("aa", days_ago=0)
    execute(database, "DELETE FROM audit_batches")
    with database.write() as transaction:
        chain_earlier(transaction)
    assert trail.verify() == []
    assert coarsening.coarsen(database, before, go_on, keks=trail.keks).rows == 12
    assert trail.verify() == []
    assert rows_of(database, SALTS)[0][0] == 1


def test_rows_in_no_batch(trail: ChainedTrail, before: datetime) -> None:
    """They lose time and address too, and stay what they were: inserted by a stranger."""
    execute(
        trail.database,
        "DELETE FROM audit_batches WHERE writer = 'bb' AND sequence = 1",
    )
    findings = trail.verify()
    assert coarsening.coarsen(trail.database, before, go_on, keks=trail.keks).rows == 12
    old, _ = split(trail.database, before)
    assert {each.request_ip for each in old} == {None}
    assert coarsening.find_due(trail.database, before) is None
    assert trail.verify() == findings


def test_a_stranger_verifies_an_export(
    trail: ChainedTrail, before: datetime, tmp_path: Path
) -> None:
    """An export of coarse rows has neither their addresses nor their salts."""
    coarsening.coarsen(trail.database, before, go_on, keks=trail.keks)
    with trail.database.read() as connection:
        write_export(connection, find_verifier(connection), tmp_path / "trail.zip")
    loaded = load_export(tmp_path / "trail.zip", tmp_path)
    done = Verified()
    try:
        assert rows_of(loaded, SALTS) == rows_of(trail.database, SALTS)
        with loaded.read() as connection:
            assert list(verify(DatabaseReader(connection), None, (), done)) == []
    finally:
        loaded.close()
    assert done.rows == 36


def test_the_ledger_does_not_give_it_back(trail: ChainedTrail, before: datetime) -> None:
    """Tokens of old rows lose exact times and addresses; what is younger and keys stay."""
    database = trail.database
    old = current_time() - timedelta(days=3)
    digest, other = (number.to_bytes(16, "big") for number in (1_000, 1_001))
    store = make_store(database)
    ip, key = "ip:192.0.2.7", "key:abc"
    with database.write() as transaction:
        store.add_tokens(transaction, {digest: LedgerEntry(ip, 0), other: LedgerEntry(key, 0)}, old)
        times = {
            SeenToken(digest, ip): 2,
            SeenToken(digest, "ip:2001:db8::1"): 3,
            SeenToken(digest, key): 1,
        }
        store.count_repeats(transaction, times, old)
        store.count_repeats(transaction, {SeenToken(other, ip): 1}, current_time())
        note_lost_answers(
            transaction, {SeenToken(digest, ip), SeenToken(digest, key), SeenToken(other, ip)}
        )
    coarsening.coarsen(database, before, go_on, keks=trail.keks)
    firsts = rows_of(database, "SELECT first_caller, first_seen_at FROM sighted_tokens")
    assert {each[0] for each in firsts} == {DROPPED_ADDRESS, key}
    assert all(":00:00" in str(each[1]) for each in firsts)
    again = rows_of(database, "SELECT caller, times FROM resubmitted_tokens ORDER BY caller, times")
    assert [tuple(each) for each in again] == [(ip, 1), (DROPPED_ADDRESS, 5), (key, 1)]
    lost = rows_of(database, "SELECT caller FROM lost_answers ORDER BY caller")
    assert [each[0] for each in lost] == [ip, key]


def test_a_row_exactly_on_the_hour(trail: ChainedTrail, before: datetime) -> None:
    """It looks coarse, and loses its address all the same."""
    coarsening.coarsen(trail.database, before, go_on, keks=trail.keks)
    execute(
        trail.database,
        "INSERT INTO validation_history (id, encrypted_nuc_hash, table_id, key_index,"
        " validation_result, reason, validated_at, request_ip) SELECT -5, encrypted_nuc_hash, 1, 2,"
        " 'FAIL', 'not_opened', '2020-01-01 00:00:00.000000+00:00', '192.0.2.7'"
        " FROM validation_history WHERE id = (SELECT min(id) FROM validation_history)",
    )
    assert coarsening.coarsen(trail.database, before, go_on, keks=trail.keks).rows == 1
    assert coarsening.find_due(trail.database, before) is None
    assert _typed(trail.database)[0].request_ip is None


def test_a_search_finds_coarse_rows(trail: ChainedTrail, before: datetime) -> None:
    """Each row once, with pages of any size and any filter, although counters have minutes."""
    database = trail.database
    young = [each for each in _everything(database, AuditFilter()) if not each.is_coarse]
    coarsening.coarsen(database, before, go_on, keks=trail.keks)
    for wanted in (AuditFilter(), AuditFilter(result=Verdict.FAIL), AuditFilter(caller="key")):
        found = _everything(database, wanted)
        assert len(found) == len({each.id for each in found}) == len(young) == 36
        assert found == sorted(found, key=lambda row: row.cursor, reverse=True)
    old = [each for each in _everything(database, AuditFilter()) if each.is_coarse]
    assert len(old) == 12
    assert _everything(database, AuditFilter(device_serial=old[0].device_serial, until=before))
    assert _everything(database, AuditFilter(request_id=old[0].request_id, until=before))
    with database.read() as connection:
        place = Cursor.parse(str(old[3].cursor))
        assert find_validation(connection, place).entry == old[3]


def _everything(database: Database, wanted: AuditFilter) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    place = None
    while True:
        with database.read() as connection:
            page = search(connection, wanted, limit=5, before=place, seconds=0.0)
        found += page.rows
        place = page.older
        if place is None:
            return found
