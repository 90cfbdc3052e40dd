"""A small trail with chains and checkpoints, as a server writes it, and its verification."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.audit_chain import checkpoints, keys
from birthmark_sma.authority.audit_chain.checkpoint import KeptNote
from birthmark_sma.authority.audit_chain.verification.database_reader import DatabaseReader
from birthmark_sma.authority.audit_chain.verification.findings import Finding, Verified
from birthmark_sma.authority.audit_chain.verification.trail import verify
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys, create_secrets
from birthmark_sma.authority.validation.records import AuditRow
from birthmark_sma.authority.validation.store import ValidationStore, make_store
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.commit_marks import CommitMark
from tests.support.authorities import small_settings
from tests.support.days import current_time
from tests.support.devices.actors import ACTOR

ROWS_IN_A_BATCH = 4


class ChainedTrail:
    """The trail of two writers. `checkpoint` signs what there is; all acts are of today."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.stores: dict[str, ValidationStore] = {}
        self._sequences: dict[str, int] = {}
        secret = KekSecret.of(small_settings(folder, None))
        record, opened = create_secrets(secret, current_time())
        self.keks: KeyEncryptionKeys = opened.keks
        with database.write() as transaction:
            kek_store.add_kek(transaction, record)
            keys.create_key(transaction, self.keks, current_time())

    def validate(self, writer: str, days_ago: int = 0, rows: int = ROWS_IN_A_BATCH) -> None:
        """Write a batch of distinct rows."""
        store = self.stores.setdefault(writer, make_store(self.database))
        sequence = self._sequences[writer] = self._sequences.get(writer, 0) + 1
        now = current_time() - timedelta(days=days_ago)
        with self.database.write() as transaction:
            store.write(
                transaction,
                [make_row(now, sequence * 1_000 + at) for at in range(rows)],
                CommitMark(writer, sequence),
            )

    def act(self, *subjects: str) -> None:
        """Record an act."""
        with self.database.write() as transaction:
            each = [Subject(name, None, {"state": "suspended"}) for name in subjects]
            trail.record(transaction, ACTOR, ActKind.DEVICE_SUSPEND, each, reason="test")

    def checkpoint(self) -> None:
        """Sign the heads."""
        with self.database.write() as transaction:
            assert checkpoints.make_checkpoint(transaction, self.keks) is not None

    def sign(self, transaction: Connection) -> None:
        """Make a checkpoint in a transaction, if a chain has grown."""
        checkpoints.make_checkpoint(transaction, self.keks)

    def verify(self, kept: Sequence[KeptNote] = ()) -> list[Finding]:
        """Return what is wrong with the trail."""
        return list(self.verify_and_count(kept)[0])

    def verify_and_count(self, kept: Sequence[KeptNote] = ()) -> tuple[list[Finding], Verified]:
        """Return what is wrong, and what was verified."""
        done = Verified()
        with self.database.read() as connection:
            found = list(verify(DatabaseReader(connection), None, kept, done))
        return found, done

    def notes(self) -> list[KeptNote]:
        """Return all checkpoints, as an operator keeps them elsewhere."""
        with self.database.read() as connection:
            return list(checkpoints.read_notes(connection))


def make_row(at: datetime, number: int) -> AuditRow:
    """Return an audit row with a value in each column, which no other number has."""
    return AuditRow(
        number.to_bytes(48, "big"), 3, number % 16, "FAIL", "not_opened", f"device-{number}", at,
        "192.0.2.7", "key", "replayed", f"request-{number}", 1, number.to_bytes(16, "big"), 900,
    )  # fmt: skip
