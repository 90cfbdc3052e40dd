"""Rotate the key-encryption key, and all that depends on the old secret, while servers run.

Called by `sma secrets rotate`. A rotation can be killed at any point and run again. Until it ends,
the old secret and the new one must both be able to decrypt everything. docs/adr/0008 explains the
order of the steps. All writes must erase what they replace: the old secret can decrypt it.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.ceremony import root_key_file
from birthmark_sma.authority.ca.crl_publication import publish_root_crl
from birthmark_sma.authority.ca.intermediate_key import open_ca_key, seal_ca_key
from birthmark_sma.authority.ca.root_key_file import PassphraseChange, RootKey
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.passphrase_file import PassphraseFile, find_passphrase
from birthmark_sma.authority.kek.passphrase_policy import check_new_passphrase
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.authority.kek.wrapping import (
    KeyEncryptionKey,
    KeyEncryptionKeys,
    create_successor_key,
    open_keys,
    open_record,
)
from birthmark_sma.authority.key_tables import cache as key_table_cache
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.provisioning import idempotency, idempotency_store
from birthmark_sma.config import NewSecret, Settings
from birthmark_sma.errors import (
    ConfigurationError,
    NotInitialisedError,
    RotationError,
    WrongSecretError,
)
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.locks import AdvisoryLock, only_one

FOLLOWING_SECONDS = 4.0
"""Both keys exist for at least this time, so that running servers, which poll for a new key twice a
second, can follow."""
_CHUNK = 250  # values that are rewrapped in a transaction
_IN_FORCE = "The new secret is the one in force already: nothing was changed."
_ROUNDS = 100  # tries to delete the old records, each after another pass of rewrapping

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of values that are rewrapped, and their total number."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of values that are wrapped under a key other than the newest."""

    key_tables: int
    first_answers: int
    ca_keys: int
    nuc_hash_keys: int

    @property
    def total(self) -> int:
        """The sum of all four."""
        return self.key_tables + self.first_answers + self.ca_keys + self.nuc_hash_keys


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


@dataclass(frozen=True, slots=True)
class _Plan:
    """The secret in force, the new secret, and the files that a rotation has to change."""

    given: KekSecret
    new: KekSecret
    new_passphrase: bytes | None = field(repr=False)
    file: PassphraseFile | None
    root_key: RootKey


def rotate(
    database: Database,
    settings: Settings,
    new: NewSecret,
    progress: Progress,
    wait: Callable[[float], object] = time.sleep,
    *,
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
                "Another rotation is under way in this authority. Wait for its end."
            )
        return _Rotation(database, settings, new, before).run(progress, wait)


def count_outdated(connection: Connection) -> Counts:
    """Count the values that are not wrapped under the newest key.

    A CA key in the older form (PKCS#8 under the passphrase) counts too.
    """
    newest = kek_store.newest_kek_id(connection)
    intermediate = ca_store.find_ca(connection, "intermediate")
    sealed = intermediate is not None and intermediate.encrypted_private_key is None
    return Counts(
        key_tables=_others(key_table_store.count_by_kek(connection), newest),
        first_answers=_others(idempotency_store.count_by_kek(connection), newest),
        ca_keys=0 if sealed and intermediate and intermediate.kek_id == newest else 1,
        nuc_hash_keys=sum(r.kek_id != newest for r in kek_store.list_keks(connection)),
    )


def has_new_secret(settings: Settings, new: NewSecret) -> bool:
    """Return whether `rotate` knows the new secret, so that the command need not prompt for it.

    It does if one is given, or if the one in force was generated.
    """
    given = new.new_ca_password or new.new_kek_file or new.new_kek_command
    return given is not None or PassphraseFile.in_force(settings) is not None


class _Rotation:
    """One run of a rotation. Use `run` once, while the advisory lock is held."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        new: NewSecret,
        before: Callable[[], None],
    ) -> None:
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
        plan = self._plan(records)
        keks, newest, superseded = self._opened(records, plan)
        # An earlier run rotated the database to this secret, but may have left its files behind.
        finished_before = newest is not None and len(records) == 1
        if finished_before and not superseded and not self._leftovers(plan):
            raise ConfigurationError(_IN_FORCE)
        if newest is None and self._new.new_ca_password is not None:
            check_new_passphrase(plan.new_passphrase or b"")
        # Before any change, as the new secret may be refused here.
        successor = self._successor(records[-1], keks, plan) if newest is None else None
        self._before()
        # 1. Write the files first: a disk that is full or read-only fails here, before any change.
        root_signer = plan.root_key.opened(self._passphrases(plan))
        self._prepare_files(plan)
        if root_signer is not None:  # each command that loads the root's key publishes its CRL
            publish_root_crl(self._database, root_signer)
        # 2. Add the new key to the chain of keys.
        if successor is not None:
            self._begin(keks, *successor)
            with self._database.read() as connection:
                # `_begin` has wrapped the CA's key already: count it as one of this run.
                before = replace(count_outdated(connection), ca_keys=1)
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
        root_key = plan.root_key.put_in_place()
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
            passphrase_file=plan.file is not None and not self._keeps_passphrase,
        )

    # --- planning

    @property
    def _keeps_passphrase(self) -> bool:
        """True if CA_PASSWORD stays, because the new key comes from a file or a command."""
        by_key = self._new.new_kek_file is not None or self._new.new_kek_command is not None
        return by_key and self._new.new_ca_password is None

    def _plan(self, records: list[KekRecord]) -> _Plan:
        file = PassphraseFile.in_force(self._settings)
        given = KekSecret.of(self._settings)
        new_passphrase: bytes | None = None
        if self._new.new_ca_password is not None:
            new_passphrase = self._new.new_ca_password.get_secret_value().encode()
        elif self._keeps_passphrase:
            new_passphrase = self._kept_passphrase(file)
        elif file is not None and file.has_old and _is_in_place(records, given):
            # The new passphrase is in place: only the root's key is still under the old one.
            new_passphrase = file.current()
        else:
            if file is None:
                raise ConfigurationError(
                    "Say what the new secret is: set SMA_NEW_CA_PASSWORD, or give --new-kek-file"
                    " or --new-kek-command."
                )
            new_passphrase = file.successor()
        return _Plan(
            given=given,
            new=KekSecret.new(self._new, lambda: new_passphrase or b""),
            new_passphrase=new_passphrase,
            file=file,
            root_key=RootKey(root_key_file(self._settings), new_passphrase),
        )

    def _kept_passphrase(self, file: PassphraseFile | None) -> bytes | None:
        """Return the passphrase in force, if files of an interrupted rotation must return to it.

        Return None if there are no such files, or if no passphrase is given.
        """
        pending = RootKey(root_key_file(self._settings), None).is_pending
        if not pending and (file is None or not file.leftovers):
            return None
        try:
            return find_passphrase(self._settings)
        except ConfigurationError:
            return None

    def _leftovers(self, plan: _Plan) -> bool:
        """Return whether files of a rotation exist that its last step would remove."""
        return plan.root_key.is_pending or (plan.file is not None and plan.file.has_old)

    def _opened(
        self, records: list[KekRecord], plan: _Plan
    ) -> tuple[KeyEncryptionKeys, int | None, bool]:
        """Return all keys, the id of the newest or None, and whether the old secret is superseded.

        The id is None unless the new secret is that of the newest key, so that the rotation has
        begun already. The old secret is superseded if it opens no key any more; then the new secret
        opens the keys. Raises WrongSecretError or ConfigurationError if neither opens them.
        """
        newest: int | None = None
        if plan.new.source == records[-1].source:
            with contextlib.suppress(WrongSecretError):
                newest = open_record(records[-1], plan.new).kek_id
        try:
            keys, superseded = open_keys(records, plan.given), False
        except (WrongSecretError, ConfigurationError):
            if newest is None:
                raise
            keys, superseded = open_keys(records, plan.new), True
        return KeyEncryptionKeys(keys, plan.given), newest, superseded

    # --- the steps

    def _prepare_files(self, plan: _Plan) -> None:
        if plan.new_passphrase is None:
            return
        if plan.file is not None:
            plan.file.prepare(plan.new_passphrase)
        plan.root_key.prepare(self._old_passphrases(plan))

    def _passphrases(self, plan: _Plan) -> list[bytes]:
        new = [] if plan.new_passphrase is None else [plan.new_passphrase]
        return [*self._old_passphrases(plan), *new]

    def _old_passphrases(self, plan: _Plan) -> list[bytes]:
        kept = [] if plan.file is None else plan.file.kept()
        try:
            return [find_passphrase(self._settings), *kept]
        except ConfigurationError:
            return kept

    def _successor(
        self, record: KekRecord, keks: KeyEncryptionKeys, plan: _Plan
    ) -> tuple[KeyEncryptionKey, KekRecord]:
        """Return the new key and its record, which no database has yet.

        Raises ConfigurationError if the new source yields the key in force, or none.
        """
        new, successor = create_successor_key(keks.newest, record, plan.new, datetime.now(UTC))
        if new.same_as(keks.newest):
            raise ConfigurationError(_IN_FORCE)
        return new, successor

    def _begin(self, keks: KeyEncryptionKeys, new: KeyEncryptionKey, successor: KekRecord) -> None:
        """Add the new key to the chain, and wrap the CA's key under it.

        Both in one transaction, after which either secret opens everything.
        """
        old = keks.newest
        with self._database.write(erase=True) as transaction:
            if not kek_store.add_successor(transaction, successor, old.wrap_key(new)):
                raise RotationError("Another rotation has just begun. Wait for its end.")
            self._seal_ca_key(transaction, keks, new)

    def _seal_ca_key(
        self, transaction: Connection, keks: KeyEncryptionKeys, kek: KeyEncryptionKey
    ) -> None:
        intermediate = ca_store.find_ca(transaction, "intermediate")
        if intermediate is None:
            raise NotInitialisedError
        if intermediate.kek_id == kek.kek_id and intermediate.encrypted_private_key is None:
            return
        signer = open_ca_key(
            transaction, intermediate, keks, lambda: find_passphrase(self._settings)
        )
        ca_store.put_sealed_key(
            transaction, intermediate.name, seal_ca_key(signer, kek), kek.kek_id
        )

    def _rewrap(self, keks: KeyEncryptionKeys, before: Counts, progress: Progress) -> None:
        kek = keks.newest
        with self._database.write(erase=True) as transaction:
            self._seal_ca_key(transaction, keks, kek)
        total = before.key_tables + before.first_answers
        done = self._rewrap_tables(keks, lambda number: progress(number, max(total, number)))
        self._rewrap_answers(
            keks, lambda number: progress(done + number, max(total, done + number))
        )

    def _rewrap_tables(self, keks: KeyEncryptionKeys, note: Callable[[int], None]) -> int:
        done = 0
        while True:
            with self._database.write(erase=True) as transaction:
                taken = key_table_store.take_outdated(transaction, keks.newest.kek_id, _CHUNK)
                if not taken:
                    return done
                key_table_store.put_rewrapped(
                    transaction,
                    [key_table_cache.rewrap(each, keks, transaction) for each in taken],
                )
            done += len(taken)
            note(done)

    def _rewrap_answers(self, keks: KeyEncryptionKeys, note: Callable[[int], None]) -> int:
        # One pass in the order of the keys. Rows that a server has locked are skipped; `_retire`
        # starts another pass for them.
        done, after = 0, b""
        while True:
            with self._database.write(erase=True) as transaction:
                taken = idempotency_store.take_outdated(
                    transaction, keks.newest.kek_id, after, _CHUNK
                )
                if not taken:
                    return done
                idempotency_store.put_rewrapped(
                    transaction,
                    [idempotency.rewrap(each, keks, transaction) for each in taken],
                )
            done += len(taken)
            after = taken[-1].idempotency_key
            note(done)

    def _retire(self, keks: KeyEncryptionKeys, progress: Progress) -> None:
        """Delete the old records, once the foreign keys show that no value refers to them.

        Raises RotationError if values under an old key keep appearing for 100 tries.
        """
        for _ in range(_ROUNDS):
            with self._database.read() as connection:
                before = count_outdated(connection)
            self._rewrap(keks, before, progress)
            try:
                with self._database.write(erase=True) as transaction:
                    kek_store.retire_all_but(transaction, keks.newest.kek_id)
            except IntegrityError:  # a value is still wrapped under an old key: rewrap again
                continue
            return
        raise RotationError(
            "Servers go on sealing under the old key. Is one of them an older program? Stop it,"
            " and type the same command again."
        )


def _is_in_place(records: list[KekRecord], given: KekSecret) -> bool:
    """Return whether the given secret is already that of the newest key."""
    try:
        open_record(records[-1], given)
    except (WrongSecretError, ConfigurationError):
        return False
    return True


def _others(by_kek: Mapping[int, int], newest: int | None) -> int:
    return sum(number for kek_id, number in by_kek.items() if kek_id != newest)
