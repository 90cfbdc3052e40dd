"""Rotate the key-encryption key, and all that depends on the old secret, while servers run.

Called by `sma secrets rotate`. A rotation can be killed at any point and run again. Until it ends,
the old secret and the new one must both be able to decrypt everything. docs/adr/0008 explains the
order of the steps. All writes must erase what they replace: the old secret can decrypt it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeAlias

from sqlalchemy import Connection, Table
from sqlalchemy.exc import IntegrityError

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Facts, Subject
from birthmark_sma.authority.audit_chain import keys as audit_keys
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.crl_publication import publish_root_crls
from birthmark_sma.authority.ca.intermediate_key import open_ca_key, seal_ca_key
from birthmark_sma.authority.ca.root_key_file import PassphraseChange
from birthmark_sma.authority.ca.store import CaRole, StoredCa
from birthmark_sma.authority.idempotency import sealing
from birthmark_sma.authority.idempotency import store as idempotency_store
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.passphrase_file import PassphraseFile, find_passphrase
from birthmark_sma.authority.kek.passphrase_policy import check_new_passphrase
from birthmark_sma.authority.kek.rotation_plan import RotationPlan, make_plan
from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.authority.kek.wrapping import (
    KeyEncryptionKey,
    KeyEncryptionKeys,
    create_successor_key,
)
from birthmark_sma.authority.key_tables import cache as key_table_cache
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.config import NewSecret, Settings
from birthmark_sma.errors import ConfigurationError, NotInitialisedError, RotationError
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.locks import AdvisoryLock, only_one
from birthmark_sma.storage.schema.key_tables import earlier_table_keys, key_tables

FOLLOWING_SECONDS = 4.0
"""Both keys exist for at least this time, so that running servers, which poll for a new key twice a
second, can follow."""
_CHUNK = 250  # values that are rewrapped in a transaction
_IN_FORCE = "The new secret is already in force. Nothing was changed."
_ROUNDS = 100  # tries to delete the old records, each after another pass of rewrapping

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of values that are rewrapped, and their total number."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of values that are wrapped under a key other than the newest."""

    key_tables: int
    earlier_table_keys: int
    first_answers: int
    ca_keys: int
    nuc_hash_keys: int
    audit_keys: int

    @property
    def total(self) -> int:
        """The sum of all six."""
        tables = self.key_tables + self.earlier_table_keys
        keys = self.ca_keys + self.nuc_hash_keys + self.audit_keys
        return tables + self.first_answers + keys


@dataclass(frozen=True, slots=True)
class Rotated:
    """The result of a rotation.

    `rewrapped` was counted at its beginning, `left` at its end. `resumed` is True if an earlier run
    had begun it.
    """

    kek_id: int
    source: str
    rewrapped: Counts
    left: Counts
    resumed: bool
    root_key: PassphraseChange
    passphrase_file: bool
    """True if the new passphrase is in the file of the data directory, in place of the old one."""


def rotate(
    database: Database,
    settings: Settings,
    new: NewSecret,
    progress: Progress,
    wait: Callable[[float], object] = time.sleep,
    *,
    actor: Actor,
    before: Callable[[], None] = lambda: None,
) -> Rotated:
    """Wrap everything under a key from a new secret, or finish a rotation that was interrupted.

    If no new secret is given and the one in force was generated, generate one. `before` is called
    after all checks of the input and before any change. `wait` gets seconds.

    Raises WrongSecretError or ConfigurationError, with nothing changed; RotationError if another
    rotation is in progress, or if servers keep wrapping under the old key; PrivateFileError; and
    DatabaseUnavailableError. Run it again with the same secret after one of the latter three.
    """
    with only_one(database, AdvisoryLock.KEY_ROTATION) as alone:
        if not alone:
            raise RotationError(
                "Another rotation of this authority is running. Wait until it has ended."
            )
        return _Rotation(database, settings, new, actor, before).run(progress, wait)


def count_outdated(connection: Connection) -> Counts:
    """Count the values that are not wrapped under the newest key.

    A CA key in the older form (PKCS#8 under the passphrase) counts too.
    """
    newest = kek_store.newest_kek_id(connection)
    return Counts(
        key_tables=_others(key_table_store.count_by_kek(connection), newest),
        earlier_table_keys=_others(
            key_table_store.count_by_kek(connection, earlier_table_keys), newest
        ),
        first_answers=_others(idempotency_store.count_by_kek(connection), newest),
        ca_keys=sum(
            each.kek_id != newest or each.encrypted_private_key is not None
            for each in _intermediates(connection)
        ),
        nuc_hash_keys=sum(r.kek_id != newest for r in kek_store.list_keks(connection)),
        audit_keys=audit_keys.count_outdated(connection, newest),
    )


def forget_previous(database: Database, settings: Settings, actor: Actor) -> int:
    """Delete the passphrases that rotations kept for earlier backups; return their number.

    No transaction holds a file, so the act is recorded before. Raises PrivateFileError, or
    DatabaseUnavailableError with nothing deleted.
    """
    file = PassphraseFile.of(settings)
    if number := len(file.list_previous()):
        subject = Subject(None, {"previous_passphrases": number}, {"previous_passphrases": 0})
        database.transact(
            lambda transaction: trail.record(
                transaction, actor, ActKind.SECRET_FORGET_PREVIOUS, [subject]
            )
        )
        file.forget_previous()
    return number


class _Rotation:
    """One run of a rotation. Use `run` once, while the advisory lock is held."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        new: NewSecret,
        actor: Actor,
        before: Callable[[], None],
    ) -> None:
        self._actor = actor
        self._before = before
        self._database = database
        self._settings = settings
        self._new = new

    def run(self, progress: Progress, wait: Callable[[float], object]) -> Rotated:
        """Run all steps, in an order in which a crash after any of them loses nothing."""
        with self._database.read() as connection:
            records = kek_store.list_keks(connection)
            before = count_outdated(connection)
        if not records:
            raise NotInitialisedError
        plan = make_plan(self._settings, self._new, records)
        keks, newest, superseded = plan.open_keys(records)
        # An earlier run rotated the database to this secret, but may have left its files behind.
        finished_before = newest is not None and len(records) == 1
        if finished_before and not superseded and not plan.is_unfinished:
            raise ConfigurationError(_IN_FORCE)
        if newest is None and self._new.new_ca_password is not None:
            check_new_passphrase(plan.new_passphrase or b"")
        # Before any change, as the new secret may be refused here.
        successor = self._successor(records[-1], keks, plan) if newest is None else None
        self._before()
        # 1. Write the files first: a disk that is full or read-only fails here, before any change.
        root_signers = [
            signer
            for each in plan.root_keys
            if (signer := each.opened(plan.passphrases)) is not None
        ]
        plan.prepare_files()
        # Each command that loads the key of a root publishes its CRL.
        publish_root_crls(self._database, root_signers)
        # 2. Add the new key to the chain of keys.
        if successor is not None:
            self._begin(keks, records[-1], *successor)
            with self._database.read() as connection:
                # `_begin` has wrapped the CA's key already: count it as one of this run.
                counted = count_outdated(connection)
                before = replace(counted, ca_keys=len(_intermediates(connection)))
        began = time.monotonic()
        with self._database.read() as connection:
            keks.follow(connection)
        # 3. Wrap everything under the new key.
        self._rewrap(keks, before, progress)
        # 4. Put the new passphrase in place, before the old one stops working in step 5.
        if plan.file is not None and plan.new_passphrase is not None:
            plan.file.put_in_place(plan.new_passphrase)
        # 5. Delete the old key, once all running servers have had the time to follow.
        if not finished_before:
            wait(max(FOLLOWING_SECONDS - (time.monotonic() - began), 0))
            self._retire(keks, progress)
        self._database.truncate_wal()  # SQLite's log may hold values under the old key
        # 6. The files of the root's key and of the old passphrase last: they stay as they are until
        # the rotation of the database is complete.
        # The first one that is here tells what became of them: all have one passphrase.
        root_key = max(
            (each.put_in_place() for each in plan.root_keys),
            key=lambda change: change is not PassphraseChange.NOT_HERE,
        )
        if plan.file is not None:
            plan.file.keep_old()
        with self._database.read() as connection:
            left = count_outdated(connection)
            source = kek_store.list_keks(connection)[-1].source
        return Rotated(
            kek_id=keks.newest.kek_id,
            source=source,
            rewrapped=before,
            left=left,
            resumed=len(records) > 1 or finished_before,
            root_key=root_key,
            passphrase_file=plan.file is not None and not plan.keeps_passphrase,
        )

    def _successor(
        self, record: KekRecord, keks: KeyEncryptionKeys, plan: RotationPlan
    ) -> tuple[KeyEncryptionKey, KekRecord]:
        """Return the new key and its record, which no database has yet.

        Raises ConfigurationError if the new source yields the key in force, or none.
        """
        new, successor = create_successor_key(keks.newest, record, plan.new, datetime.now(UTC))
        if new.same_as(keks.newest):
            raise ConfigurationError(_IN_FORCE)
        return new, successor

    def _begin(
        self,
        keks: KeyEncryptionKeys,
        record: KekRecord,
        new: KeyEncryptionKey,
        successor: KekRecord,
    ) -> None:
        """Add the new key to the chain, and wrap the keys of the intermediates under it.

        Both in one transaction, after which either secret opens everything. It records the act: a
        run that resumes the rotation records none.
        """
        old = keks.newest

        def begin(transaction: Connection) -> None:
            if not kek_store.add_successor(transaction, successor, old.wrap_key(new)):
                raise RotationError("Another rotation has just begun. Wait until it has ended.")
            self._seal_ca_keys(transaction, keks, new)
            subject = Subject(None, _facts(record), _facts(successor))
            trail.record(transaction, self._actor, ActKind.SECRET_ROTATE, [subject])

        self._database.transact(begin, erase=True)

    def _seal_ca_keys(
        self, transaction: Connection, keks: KeyEncryptionKeys, kek: KeyEncryptionKey
    ) -> None:
        for ca in _intermediates(transaction):
            if ca.kek_id == kek.kek_id and ca.encrypted_private_key is None:
                continue
            signer = open_ca_key(transaction, ca, keks, lambda: find_passphrase(self._settings))
            ca_store.put_sealed_key(transaction, ca.name, seal_ca_key(signer, kek), kek.kek_id)

    def _rewrap(self, keks: KeyEncryptionKeys, before: Counts, progress: Progress) -> None:
        self._database.transact(
            lambda transaction: self._seal_ca_keys(transaction, keks, keks.newest), erase=True
        )
        self._database.transact(partial(audit_keys.rewrap, keks=keks), erase=True)
        total = before.key_tables + before.earlier_table_keys + before.first_answers
        done = 0
        for rewrap_some in (
            partial(_rewrap_tables, table=key_tables),
            partial(_rewrap_tables, table=earlier_table_keys),
            _AnswersInOrder(),
        ):
            taken = 1
            while taken:
                taken = self._database.transact(partial(rewrap_some, keks=keks), erase=True)
                done += taken
                progress(done, max(total, done))

    def _retire(self, keks: KeyEncryptionKeys, progress: Progress) -> None:
        """Delete the old records, once the foreign keys show that no value refers to them.

        Raises RotationError if values under an old key keep appearing for 100 tries.
        """
        for _ in range(_ROUNDS):
            with self._database.read() as connection:
                before = count_outdated(connection)
            self._rewrap(keks, before, progress)
            try:
                self._database.transact(
                    partial(kek_store.retire_all_but, kek_id=keks.newest.kek_id), erase=True
                )
            except IntegrityError:  # a value is still wrapped under an old key: rewrap again
                continue
            return
        raise RotationError(
            "Servers still wrap values under the old key. If one of them is an older program, stop"
            " it. Then type the same command again."
        )


def _facts(record: KekRecord) -> Facts:
    return {"kek_id": record.kek_id, "source": record.source}


def _intermediates(connection: Connection) -> list[StoredCa]:
    return [each for each in ca_store.list_cas(connection) if each.role is CaRole.INTERMEDIATE]


def _rewrap_tables(transaction: Connection, keks: KeyEncryptionKeys, table: Table) -> int:
    taken = key_table_store.take_outdated(transaction, keks.newest.kek_id, _CHUNK, table)
    if taken:
        rewrapped = [key_table_cache.rewrap(each, keks, transaction) for each in taken]
        key_table_store.put_tables(transaction, rewrapped, table)
    return len(taken)


class _AnswersInOrder:
    """One pass over the stored first answers, in the order of their keys.

    Rows that a server has locked are skipped; `_retire` starts another pass for them.
    """

    def __init__(self) -> None:
        self._after = b""

    def __call__(self, transaction: Connection, keks: KeyEncryptionKeys) -> int:
        """Rewrap the next ones, and return their number."""
        taken = idempotency_store.take_outdated(
            transaction, keks.newest.kek_id, self._after, _CHUNK
        )
        if taken:
            idempotency_store.put_rewrapped(
                transaction, [sealing.rewrap(each, keks, transaction) for each in taken]
            )
            self._after = taken[-1].idempotency_key
        return len(taken)


def _others(by_kek: Mapping[int, int], newest: int | None) -> int:
    return sum(number for kek_id, number in by_kek.items() if kek_id != newest)
