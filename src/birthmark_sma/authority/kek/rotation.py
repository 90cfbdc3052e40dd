"""Rotate the key-encryption key while servers run, and whatever else hangs on the old secret.

A rotation can be killed anywhere and run again. While it lasts, the old secret and the new one both
open everything. docs/adr/0008 says why each step comes where it does.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
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
from birthmark_sma.storage import erasure
from birthmark_sma.storage.advisory_locks import AdvisoryLock
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.exclusive_lock import only_one

FOLLOWING_SECONDS = 4.0
"""How long both keys are there at least: running servers look for a new one twice a second."""
_CHUNK = 250
_IN_FORCE = "The new secret is the one in force already: nothing was changed."
_ROUNDS = 100

Progress: TypeAlias = Callable[[int, int], None]
"""Takes how many wrapped values are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many values are wrapped under keys that are not the newest."""

    key_tables: int
    first_answers: int
    ca_keys: int
    nuc_hash_keys: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.key_tables + self.first_answers + self.ca_keys + self.nuc_hash_keys


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation has done. `left` was counted at its end, in the database."""

    kek_id: int
    source: str
    rewrapped: Counts
    left: Counts
    resumed: bool
    root_key: PassphraseChange
    passphrase_file: bool
    """Whether the new passphrase is in the data directory, in the old one's place."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is in force, and what is to follow."""

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
    """Wrap everything anew under a key from a new secret; finish what an earlier run began.

    Without a new secret one is made, where the one in force was made as well. `before` is called
    once nothing can be refused any more, and nothing is changed yet. Raises
    WrongSecretError or ConfigurationError with nothing touched, RotationError where another
    rotation is under way, PrivateFileError and DatabaseUnavailableError; it is then run again.
    """
    with only_one(database, AdvisoryLock.KEY_ROTATION) as alone:
        if not alone:
            raise RotationError(
                "Another rotation is under way in this authority. Wait for its end."
            )
        return _Rotation(database, settings, new, before).run(progress, wait)


def count_outdated(connection: Connection) -> Counts:
    """Count what is wrapped under another key than the newest, or in the form without one."""
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
    """Say whether a rotation can tell what the new secret is, so that nobody need be asked."""
    given = new.new_ca_password or new.new_kek_file or new.new_kek_command
    return given is not None or PassphraseFile.in_force(settings) is not None


class _Rotation:
    """One run of a rotation."""

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
        """Do all steps, in the order that lets each of them be the last one."""
        with self._database.read() as connection:
            records = kek_store.list_keks(connection)
            before = count_outdated(connection)
        if not records:
            raise NotInitialisedError
        plan = self._plan(records)
        keks, newest, superseded = self._opened(records, plan)
        finished_before = newest is not None and len(records) == 1
        if finished_before and not superseded and not self._leftovers(plan):
            raise ConfigurationError(_IN_FORCE)
        if newest is None and self._new.new_ca_password is not None:
            check_new_passphrase(plan.new_passphrase or b"")
        self._before()
        # Files first: a disk that is full, or not ours, stops this before anything is touched.
        root_signer = plan.root_key.opened(self._passphrases(plan))
        self._prepare_files(plan)
        if root_signer is not None:  # as always where the root's key is at hand
            publish_root_crl(self._database, root_signer)
        if newest is None:
            newest = self._begin(records[-1], keks, plan)
            with self._database.read() as connection:
                before = replace(count_outdated(connection), ca_keys=1)
        began = time.monotonic()
        with self._database.read() as connection:
            keks.follow(connection)
        self._rewrap(keks, before, progress)
        if plan.file is not None and plan.new_passphrase is not None:
            plan.file.put_in_place(plan.new_passphrase)
        if not finished_before:
            wait(max(FOLLOWING_SECONDS - (time.monotonic() - began), 0))
            self._retire(keks, progress)
        erasure.truncate_wal(self._database)
        root_key = plan.root_key.put_in_place()
        if plan.file is not None:
            plan.file.keep_old()
        with self._database.read() as connection:
            left = count_outdated(connection)
            source = kek_store.list_keks(connection)[-1].source
        return Rotated(
            kek_id=newest,
            source=source,
            rewrapped=before,
            left=left,
            resumed=len(records) > 1 or finished_before,
            root_key=root_key,
            passphrase_file=plan.file is not None and not self._keeps_passphrase,
        )

    # --- what is to be done

    @property
    def _keeps_passphrase(self) -> bool:
        """Whether CA_PASSWORD stays, as the new key comes from elsewhere."""
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
            new_passphrase = file.current()  # for the root's key, which still has the old one
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
        """Return the passphrase in force, where files of an earlier rotation are to go by it."""
        pending = RootKey(root_key_file(self._settings), None).is_pending
        if not pending and (file is None or not file.leftovers):
            return None
        try:
            return find_passphrase(self._settings)
        except ConfigurationError:
            return None

    def _leftovers(self, plan: _Plan) -> bool:
        """Say whether a rotation to this secret has come to its end but for its files."""
        return plan.root_key.is_pending or (plan.file is not None and plan.file.has_old)

    def _opened(
        self, records: list[KekRecord], plan: _Plan
    ) -> tuple[KeyEncryptionKeys, int | None, bool]:
        """Open all keys by either secret.

        Beside them: the newest one's id where the new secret is its own, and whether the secret
        that was in force opens nothing any more.
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

    def _begin(self, record: KekRecord, keks: KeyEncryptionKeys, plan: _Plan) -> int:
        """Record the new key, bridged to the old one, and bring the CA's key under it."""
        old = keks.newest
        new, successor = create_successor_key(old, record, plan.new, datetime.now(UTC))
        if new.same_as(old):
            raise ConfigurationError(_IN_FORCE)
        with self._writing() as transaction:
            if not kek_store.add_successor(transaction, successor, old.wrap_key(new)):
                raise RotationError("Another rotation has just begun. Wait for its end.")
            self._seal_ca_key(transaction, keks, new)
        return new.kek_id

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
        with self._writing() as transaction:
            self._seal_ca_key(transaction, keks, kek)
        total = before.key_tables + before.first_answers
        done = self._rewrap_tables(keks, lambda number: progress(number, max(total, number)))
        self._rewrap_answers(
            keks, lambda number: progress(done + number, max(total, done + number))
        )

    def _rewrap_tables(self, keks: KeyEncryptionKeys, note: Callable[[int], None]) -> int:
        done = 0
        while True:
            with self._writing() as transaction:
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
        done, after = 0, b""
        while True:
            with self._writing() as transaction:
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
        """Delete the old records, once the database itself says that nothing refers to them."""
        for _ in range(_ROUNDS):
            with self._database.read() as connection:
                before = count_outdated(connection)
            self._rewrap(keks, before, progress)
            try:
                with self._writing() as transaction:
                    kek_store.retire_all_but(transaction, keks.newest.kek_id)
            except IntegrityError:  # somebody sealed under the old key at the last moment
                continue
            return
        raise RotationError(
            "Servers go on sealing under the old key. Is one of them an older program? Stop it,"
            " and type the same command again."
        )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._database.write() as transaction:
            erasure.enable_secure_delete(transaction)
            yield transaction


def _is_in_place(records: list[KekRecord], given: KekSecret) -> bool:
    """Say whether what an unfinished rotation leads to is given already."""
    try:
        open_record(records[-1], given)
    except (WrongSecretError, ConfigurationError):
        return False
    return True


def _others(by_kek: Mapping[int, int], newest: int | None) -> int:
    return sum(number for kek_id, number in by_kek.items() if kek_id != newest)
