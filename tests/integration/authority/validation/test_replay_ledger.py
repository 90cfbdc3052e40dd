"""The replay ledger on both databases, held against a plain model of what it should say."""

import random
import secrets
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from birthmark_sma.authority.validation import replay_ledger
from birthmark_sma.authority.validation.store import make_store
from birthmark_sma.protocol.replay import Repeat, SeenToken
from birthmark_sma.storage.engine import Database, open_database
from tests.support.authorities import counted_statements, rows_of

NOW = datetime(2026, 3, 29, 23, 30, 59, 999_999, tzinfo=UTC)


class Model:
    """What the ledger should know."""

    def __init__(self) -> None:
        self.first: dict[bytes, str] = {}
        self.again: Counter[SeenToken] = Counter()

    def note(self, sighting: SeenToken) -> Repeat | None:
        digest, caller = sighting
        if digest not in self.first:
            self.first[digest] = caller
            return None
        known = self.first[digest] == caller or sighting in self.again
        self.again[sighting] += 1
        return Repeat.REPLAYED if known else Repeat.DUAL_SUBMISSION


def note(database: Database, *sightings: SeenToken, at: datetime = NOW) -> list[Repeat | None]:
    store = make_store(database)
    return database.transact(
        lambda transaction: replay_ledger.note(store, transaction, sightings, at)[0]
    )


def written(database: Database) -> tuple[dict[bytes, str], Counter[SeenToken]]:
    first = rows_of(database, "SELECT digest, first_caller FROM sighted_tokens")
    again = rows_of(database, "SELECT digest, caller, times FROM resubmitted_tokens")
    return (
        {bytes(digest): caller for digest, caller in first},
        Counter({SeenToken(bytes(digest), caller): times for digest, caller, times in again}),
    )


@pytest.mark.parametrize("size", [1, 2, 5, 64, 257, 1_000])
def test_batches_of_any_size_with_any_repeats(database: Database, size: int) -> None:
    """Threat 17: first sights, replays and dual submissions, within batches and across them."""
    chance = random.Random(size)
    digests = [chance.randbytes(16) for _ in range(size)]
    callers = ["ip:192.0.2.1", "key:0123456789abcdef", "local", 'ip:"odd', "ip:ä"]
    model = Model()
    for _ in range(8):
        new = [chance.randbytes(16) for _ in range(size // 2)]
        batch = [
            SeenToken(chance.choice(digests + new), chance.choice(callers)) for _ in range(size)
        ]
        assert note(database, *batch) == [model.note(each) for each in batch]
    assert written(database) == (model.first, model.again)


def test_first_sights_cost_one_statement(database: Database) -> None:
    """Repeats some more: the hot path must not pay for what is rare."""
    sightings = [SeenToken(secrets.token_bytes(16), "ip:192.0.2.1") for _ in range(4)]
    with counted_statements(database) as statements:
        note(database, *sightings)
        first = [each for each in statements if "_tokens" in each]
        statements.clear()
        note(database, *sightings)
        again = [each for each in statements if "_tokens" in each]
    assert len(first) == 1
    assert len(again) == (3 if database.dialect_name == "postgresql" else 5)


def test_nothing_is_noted_of_what_was_rolled_back(database: Database) -> None:
    """Threat 30: ledger and audit rows share their fate."""
    sighting = SeenToken(bytes(16), "local")
    with database.engine.connect() as connection, connection.begin() as transaction:
        assert replay_ledger.note(make_store(database), connection, [sighting], NOW)[0] == [None]
        transaction.rollback()
    assert note(database, sighting) == [None]


def test_writers_in_any_order_never_wait_for_each_other_in_a_ring(
    database: Database, database_url: str
) -> None:
    """Batches of the same tokens, in other orders, at once: no deadlock, and each counted once."""
    digests = [bytes([number]) * 16 for number in range(60)]
    kinds: Counter[Repeat | None] = Counter()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        own = open_database(database_url)
        try:
            for _ in range(20):
                batch = [SeenToken(digest, f"ip:{seed % 2}") for digest in digests]
                chance.shuffle(batch)
                found = note(own, *batch)
                with lock:
                    kinds.update(found)
        except BaseException as error:
            failures.append(error)
        finally:
            own.close()

    lock = threading.Lock()
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(60)
    assert failures == []
    assert kinds == {None: 60, Repeat.DUAL_SUBMISSION: 60, Repeat.REPLAYED: 60 * 78}
    assert written(database)[1].total() == 60 * 79


# --- verdicts that nobody got


def test_a_lost_answer_is_taken_once(database: Database) -> None:
    """By its caller and its token alone; to note it twice does no harm."""
    lost, others = SeenToken(bytes(16), "local"), SeenToken(bytes(16), "ip:192.0.2.1")
    with database.write() as transaction:
        replay_ledger.note_lost_answers(transaction, set())
        for _ in range(2):
            replay_ledger.note_lost_answers(transaction, {lost})
    for taken in ({lost}, set()):
        with database.write() as transaction:
            assert replay_ledger.take_lost_answers(transaction, {lost, others}) == taken


def test_one_of_many_takes_a_lost_answer(database: Database, database_url: str) -> None:
    """Whichever process is asked: just one gives the verdict."""
    many = {SeenToken(secrets.token_bytes(16), "local") for _ in range(500)}
    with database.write() as transaction:
        replay_ledger.note_lost_answers(transaction, many)
    taken: list[SeenToken] = []

    def take() -> None:
        own = open_database(database_url)
        taken.extend(
            own.transact(lambda transaction: replay_ledger.take_lost_answers(transaction, many))
        )
        own.close()

    workers = [threading.Thread(target=take) for _ in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(60)
    assert len(taken) == 500
    assert set(taken) == many


# --- what is old


def test_what_is_old_is_forgotten_with_its_repeats(database: Database) -> None:
    """Oldest first, and nothing that is as old as the limit."""
    ages = {days: SeenToken(bytes([days]) * 16, "local") for days in (9, 5, 3, 2, 0)}
    for days, sighting in ages.items():
        note(database, sighting, sighting, at=NOW - timedelta(days=days))
    with database.write() as transaction:
        replay_ledger.note_lost_answers(transaction, set(ages.values()))
    before = NOW - timedelta(days=3)
    with database.write() as transaction:
        assert len(make_store(database).find_old_tokens(transaction, before, limit=1)) == 1
        old = make_store(database).find_old_tokens(transaction, before, limit=100)
        assert replay_ledger.forget(make_store(database), transaction, old, before) == 2
        assert make_store(database).find_old_tokens(transaction, before, limit=100) == []
    kept = {ages[days].digest for days in (3, 2, 0)}
    first, again = written(database)
    assert set(first) == {digest for digest, _ in again} == kept
    lost = rows_of(database, "SELECT digest FROM lost_answers")
    assert {bytes(digest) for (digest,) in lost} == kept
    assert note(database, *ages.values()) == [None, None, *[Repeat.REPLAYED] * 3]


def test_what_took_the_place_of_the_old_stays(database: Database, database_url: str) -> None:
    """Two programs may prune at once: an address that was found may hold a new token since."""
    old = SeenToken(bytes(16), "local")
    note(database, old, at=NOW - timedelta(days=9))
    with database.read() as connection:
        places = make_store(database).find_old_tokens(connection, NOW, limit=100)
    with database.write() as transaction:
        assert replay_ledger.forget(make_store(database), transaction, places, NOW) == 1
    if database.dialect_name == "postgresql":
        with psycopg.connect(database_url, autocommit=True) as plain:
            plain.execute("VACUUM sighted_tokens")
    note(database, SeenToken(b"n" * 16, "local"), at=NOW)
    with database.write() as transaction:
        assert replay_ledger.forget(make_store(database), transaction, places, NOW) == 0
    assert set(written(database)[0]) == {b"n" * 16}


def test_finding_the_old_reads_no_whole_table(database: Database) -> None:
    """On PostgreSQL by the summary of pages; on SQLite only the first rows are looked at."""
    note(database, SeenToken(b"new" * 5, "local"), at=NOW)
    note(database, SeenToken(b"old" * 5, "local"), at=NOW - timedelta(days=9))
    with database.read() as connection:
        if database.dialect_name == "sqlite":
            assert make_store(database).find_old_tokens(connection, NOW, limit=1) == []
            assert len(make_store(database).find_old_tokens(connection, NOW, limit=2)) == 1
            return
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        plan = connection.exec_driver_sql(
            "EXPLAIN SELECT ctid FROM sighted_tokens WHERE first_seen_at < '2020-01-01' LIMIT 9"
        )
        assert "sighted_tokens_first_seen_at_idx" in " ".join(row[0] for row in plan)


# --- one key derivation


def passed(
    database: Database, sighting: SeenToken, token: bytes, number: int
) -> tuple[Repeat | None, int]:
    """Note a token that passes under this derivation now; say under which it passed."""
    store = make_store(database)
    repeats, under = database.transact(
        lambda transaction: replay_ledger.note(store, transaction, [sighting], NOW, {token: number})
    )
    return repeats[0], under[token]


def test_the_first_derivation_stays(database: Database) -> None:
    """Threat 42: 0 is none. What was brought under another one alone is no first sight."""
    token, published = SeenToken(bytes(16), "local"), SeenToken(b"p" * 16, "local")
    assert passed(database, published, token.digest, 0) == (None, 0)
    assert passed(database, token, token.digest, 0) == (None, 0)
    assert passed(database, published, token.digest, 2) == (Repeat.REPLAYED, 2)
    assert passed(database, token, token.digest, 1) == (Repeat.REPLAYED, 2)
    assert passed(database, SeenToken(bytes(16), "key:1"), token.digest, 1) == (
        Repeat.DUAL_SUBMISSION,
        2,
    )
    assert written(database)[0] == {token.digest: "local", published.digest: "local"}


@pytest.mark.parametrize("known", [False, True], ids=["new", "failed before"])
def test_of_two_programs_the_first_to_commit_decides(
    database: Database, database_url: str, known: bool
) -> None:
    """Threat 42: the second one waits, and then knows."""
    token, published = SeenToken(bytes(16), "local"), SeenToken(b"p" * 16, "local")
    if known:
        passed(database, token, token.digest, 0)
        passed(database, published, token.digest, 0)
    other = open_database(database_url)
    found: list[tuple[Repeat | None, int]] = []
    second = threading.Thread(
        target=lambda: found.append(passed(other, token, token.digest, 1)), daemon=True
    )
    with database.write() as transaction:
        under = replay_ledger.note(
            make_store(database), transaction, [published], NOW, {token.digest: 2}
        )[1]
        assert under == {token.digest: 2}
        second.start()
        second.join(0.3)
        assert second.is_alive()
    second.join(30)
    other.close()
    assert found == [(Repeat.REPLAYED if known else None, 2)]
