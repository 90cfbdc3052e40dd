"""First answers: the first stays, until it is given back or a day has passed."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from birthmark_sma.authority.idempotency import store as idempotency_store
from birthmark_sma.authority.idempotency.store import StoredResponse
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.storage.engine import Database, open_database

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def answer(
    key: bytes, response: bytes = b"\x00first\xff", *, age: timedelta = timedelta(0)
) -> StoredResponse:
    """Return an answer of this age."""
    return StoredResponse(key, b"digest", response, 1, NOW - age)


def claim(database: Database, *answers: StoredResponse) -> None:
    """Claim keys, with the key-encryption key that they name."""
    with database.write() as transaction:
        if kek_store.newest_kek_id(transaction) is None:
            kek_store.add_kek(transaction, KekRecord(1, "file", b"", b"", NOW))
        idempotency_store.claim(transaction, answers)


def find(database: Database, *keys: bytes) -> dict[bytes, StoredResponse]:
    """Find first answers."""
    with database.read() as connection:
        return idempotency_store.find(connection, keys)


def test_the_first_answer_stays(database: Database) -> None:
    """A key that was used keeps its answer, and does not disturb a new one beside it."""
    claim(database, answer(b"one"))
    claim(database, answer(b"one", b"second"), answer(b"two"))
    assert find(database, b"one", b"two", b"three") == {
        b"one": answer(b"one"),
        b"two": answer(b"two"),
    }


def test_the_first_of_one_batch_stays(database: Database) -> None:
    """Also where both come together."""
    claim(database, answer(b"one"), answer(b"one", b"second"))
    assert find(database, b"one") == {b"one": answer(b"one")}


def test_a_key_given_back_is_free(database: Database) -> None:
    """And no other key with it."""
    claim(database, answer(b"one"), answer(b"two"))
    with database.write() as transaction:
        idempotency_store.release(transaction, [b"one", b"never used"])
    assert set(find(database, b"one", b"two")) == {b"two"}
    claim(database, answer(b"one", b"second"))
    assert find(database, b"one")[b"one"].sealed_response == b"second"


def test_old_answers_are_forgotten(database: Database) -> None:
    """Those before the time, and only those."""
    microsecond, day = timedelta(microseconds=1), timedelta(hours=24)
    claim(
        database,
        answer(b"old", age=day + microsecond),
        answer(b"just not", age=day),
        answer(b"new"),
    )
    with database.write() as transaction:
        idempotency_store.forget_before(transaction, NOW - day)
    assert set(find(database, b"old", b"just not", b"new")) == {b"just not", b"new"}


def test_a_claim_waits_for_the_outcome_of_another(database: Database, database_url: str) -> None:
    """While another program is about to take a key, nobody else gets it or misses it."""
    claim(database, answer(b"unrelated"))
    other = open_database(database_url)
    outcome: list[bytes] = []

    def second(transaction: Connection) -> bytes:
        idempotency_store.claim(transaction, [answer(b"one", b"second")])
        return idempotency_store.find(transaction, [b"one"])[b"one"].sealed_response

    thread = threading.Thread(target=lambda: outcome.append(other.transact(second)))
    with database.write() as transaction:
        idempotency_store.claim(transaction, [answer(b"one", b"first")])
        thread.start()
        time.sleep(0.2)
        assert outcome == []
    thread.join(30)
    assert outcome == [b"first"]
    other.close()


def test_answers_are_sealed_anew(database: Database) -> None:
    """Those under another key are taken in order, a few at a time; all else about them stays."""
    claim(database, *(answer(b"%d" % n) for n in range(5)))
    with database.write() as transaction:
        kek_store.add_kek(transaction, KekRecord(2, "file", b"", b"", NOW))
    after = b""
    for number in (2, 2, 1, 0):
        with database.write() as transaction:
            taken = idempotency_store.take_outdated(transaction, 2, after, 2)
            assert len(taken) == number
            if taken:
                after = taken[-1].idempotency_key
                anew = [replace(each, sealed_response=b"new", kek_id=2) for each in taken]
                idempotency_store.put_rewrapped(transaction, anew)
    keys = [b"%d" % n for n in range(5)]
    assert find(database, *keys) == {
        key: replace(answer(key), sealed_response=b"new", kek_id=2) for key in keys
    }
    with database.read() as connection:
        assert idempotency_store.count_by_kek(connection) == {2: 5}
        assert [
            a.idempotency_key for a in idempotency_store.list_some(connection, b"1", 2)
        ] == keys[2:4]
