"""Checks of secrets: decrypt each one, and report weak ones and files that other users can read.

`sma doctor` runs these checks among others, `sma secrets check` runs them alone. They must change
nothing, and no finding may contain a secret.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.ceremony import root_key_files
from birthmark_sma.authority.ca.intermediate_key import open_ca_key
from birthmark_sma.authority.ca.root_key_file import RootKey, is_root_key_slow_to_guess
from birthmark_sma.authority.ca.store import CaRole
from birthmark_sma.authority.devices import store as device_store
from birthmark_sma.authority.idempotency import sealing
from birthmark_sma.authority.idempotency import store as idempotency_store
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.passphrase_file import (
    PASSPHRASE_FILE,
    PassphraseFile,
    find_passphrase,
)
from birthmark_sma.authority.kek.passphrase_policy import find_weakness
from birthmark_sma.authority.kek.sources import KekSource
from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys, open_stored_secrets
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.cache import unwrap_table
from birthmark_sma.authority.operations.doctor.findings import Finding, critical, info, ok, warning
from birthmark_sma.config import Settings
from birthmark_sma.counts import counted
from birthmark_sma.errors import BirthmarkError, ConfigurationError
from birthmark_sma.runtime.secret_files import others_can_read
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS
from birthmark_sma.storage.schema.key_tables import earlier_table_keys

_ROTATE = "Type sma secrets rotate"
_CHUNK = 250  # stored responses that are read at a time
_STRONG_BITS = 90  # a passphrase with fewer is reported as short
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class KeyUse:
    """A key-encryption key, and the numbers of values that are wrapped under it."""

    kek_id: int
    source: str
    created_at: str
    key_tables: int
    earlier_table_keys: int
    first_answers: int
    ca_key: bool


@dataclass(frozen=True, slots=True)
class SecretsReport:
    """The result of `sma secrets check`.

    `places` has the place of each secret, in words. `opened` has the number of values of each kind
    that were decrypted, which proves the keys.
    """

    keys: list[KeyUse]
    places: dict[str, str]
    opened: dict[str, int]
    broken_tables: int
    findings: list[Finding]


def check_secrets(database: Database, settings: Settings, *, passphrase_from: str) -> SecretsReport:
    """Run all checks of this module and return the report.

    `passphrase_from` is the place where CA_PASSWORD is set, in words, because the settings do not
    have it. Raises the errors of opening the authority if the key-encryption key cannot be
    obtained: WrongSecretError, ConfigurationError, NotInitialisedError, PrivateFileError.
    """
    opened, findings = decrypt_all(database, settings)
    with database.read() as connection:
        records = kek_store.list_keks(connection)
        return SecretsReport(
            keys=_uses(connection, records),
            places=_places(settings, records, passphrase_from),
            opened=opened,
            broken_tables=key_table_store.count_tables(connection) - opened["key tables"],
            findings=[*findings, *check_tables(database), *check_files(settings)],
        )


def check_tables(database: Database) -> Iterator[Finding]:
    """Check that all key tables exist. A missing one is critical."""
    with database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
        present = key_table_store.list_table_ids(connection)
        registered = device_store.are_registered(connection)
    if sizes is None:
        return
    if present == list(range(sizes.tables)):
        yield ok(f"All {sizes.tables:,} key tables are there")
    else:
        yield critical(
            f"{len(present):,} of {counted(sizes.tables, 'key table')} are there",
            "Restore a backup: devices have keys of the missing tables"
            if registered
            else "Type sma tables populate",
        )


def decrypt_all(database: Database, settings: Settings) -> tuple[dict[str, int], list[Finding]]:
    """Decrypt all wrapped values; return the numbers of them by kind, and the findings.

    The service does not work without its key tables and its CA key, so a fault there is critical.
    Raises as `check_secrets`.
    """
    keks = open_stored_secrets(database, settings).keks
    opened: dict[str, int] = {}
    with database.read(LONG_SECONDS) as connection:
        records = kek_store.list_keks(connection)
        findings = [
            *_check_rotation(records),
            *_check_table_keys(connection, keks, opened),
            *_check_ca_key(connection, keks, settings, opened),
            *_check_stored_responses(connection, keks, opened),
            *_check_passphrase(settings, records),
        ]
    if not any(each.is_bad for each in findings):
        numbers = ", ".join(f"{number:,} {what}" for what, number in opened.items())
        findings.append(ok(f"All were decrypted: {numbers}"))
    return opened, findings


def check_files(settings: Settings) -> Iterator[Finding]:
    """Warn of private files that others can read, and of files that a rotation left behind."""
    file = PassphraseFile.in_force(settings)
    roots = [path for path in root_key_files(settings) if path.exists()]
    problems = [
        warning(
            f"Other users can read {path}",
            f"Type chmod {'700' if path.is_dir() else '600'} {path}",
        )
        for path in _private_files(settings)
        if others_can_read(path)
    ]
    problems += [
        warning(
            f"{root} is quick to guess at: it is encrypted as older versions did",
            "Type sma init with the CA_PASSWORD that decrypts it, to encrypt it again",
        )
        for root in roots
        if not others_can_read(root) and not is_root_key_slow_to_guess(root)
    ]
    problems += [
        warning(f"{path} was left behind by an interrupted rotation", _ROTATE)
        for path in (
            *(file.leftovers if file else ()),
            *(path for root in root_key_files(settings) for path in RootKey(root, None).leftovers),
        )
    ]
    yield from problems or [ok("Only their owner can read them")]
    for root in roots:
        yield info(
            f"The root's private key is in {root}. The server never needs it",
            "Move it to a safe place",
        )
    if file is not None and file.previous.exists():
        yield info(
            f"{file.previous} has passphrases from before a rotation. Backups of that time need"
            " them",
            "Once no such backup is left, type sma secrets forget-previous",
        )


# --- where the secrets are


def _uses(connection: Connection, records: list[KekRecord]) -> list[KeyUse]:
    tables = key_table_store.count_by_kek(connection)
    earlier = key_table_store.count_by_kek(connection, earlier_table_keys)
    answers = idempotency_store.count_by_kek(connection)
    cas = ca_store.list_cas(connection)
    return [
        KeyUse(
            kek_id=record.kek_id,
            source=record.source,
            created_at=record.created_at.isoformat(timespec="seconds"),
            key_tables=tables.get(record.kek_id, 0),
            earlier_table_keys=earlier.get(record.kek_id, 0),
            first_answers=answers.get(record.kek_id, 0),
            ca_key=any(ca.kek_id == record.kek_id for ca in cas),
        )
        for record in records
    ]


def _places(settings: Settings, records: list[KekRecord], passphrase_from: str) -> dict[str, str]:
    if settings.ca_password is not None:
        passphrase = passphrase_from
    elif PassphraseFile.in_force(settings) is not None:
        passphrase = f"the file {settings.data_dir / PASSPHRASE_FILE}"
    else:
        passphrase = "not given"  # noqa: S105  no password
    match records[-1].source:
        case KekSource.FILE:
            kek = f"the file {settings.kek_file}"
        case KekSource.COMMAND:
            kek = "the command of SMA_KEK_COMMAND"
        case _:
            kek = "derived from CA_PASSWORD"
    roots = [str(path) for path in root_key_files(settings) if path.exists()]
    return {
        "CA_PASSWORD": passphrase,
        "key-encryption key": kek,
        "root CA key": f"the file {' and '.join(roots)}"
        if roots
        else "not at hand, as it should be",
    }


# --- in the database


def _check_rotation(records: list[KekRecord]) -> Iterator[Finding]:
    if len(records) > 1:
        yield warning(
            f"A rotation is running or was interrupted: there are {len(records)} key-encryption"
            " keys",
            "Unless it is running, type sma secrets rotate again, with the same new secret",
        )
    if any(record.wrapped_predecessor for record in records[:1]):
        yield warning("The newest key still unwraps one that was deleted", _ROTATE)


def _check_table_keys(
    connection: Connection, keks: KeyEncryptionKeys, opened: dict[str, int]
) -> Iterator[Finding]:
    for what, tables in (
        ("key table", key_table_store.list_tables(connection)),
        ("earlier table key", key_table_store.list_earlier(connection)),
    ):
        broken = _undecryptable(tables, lambda table: unwrap_table(table, keks, connection))
        opened[f"{what}s"] = len(tables) - len(broken)
        if broken:
            yield critical(
                f"{counted(len(broken), what)} cannot be decrypted, first table"
                f" {broken[0].table_id}",
                "Restore a backup: devices have keys of these tables",
            )


def _check_ca_key(
    connection: Connection, keks: KeyEncryptionKeys, settings: Settings, opened: dict[str, int]
) -> Iterator[Finding]:
    cas = [ca for ca in ca_store.list_cas(connection) if ca.role is CaRole.INTERMEDIATE]
    if not cas:
        yield critical("There is no intermediate CA", "Type sma init")
        return
    passphrase = partial(find_passphrase, settings)
    broken = _undecryptable(cas, lambda ca: open_ca_key(connection, ca, keks, passphrase))
    opened["CA key"] = len(cas) - len(broken)
    for ca in broken:
        yield critical(f"The private key of {ca.name} cannot be decrypted", "Restore a backup")
    if any(ca.encrypted_private_key is not None for ca in cas):
        yield warning(
            "The intermediate's private key is in the older form (PKCS#8 under CA_PASSWORD), which"
            " is quick to guess at",
            _ROTATE,
        )


def _check_stored_responses(
    connection: Connection, keks: KeyEncryptionKeys, opened: dict[str, int]
) -> Iterator[Finding]:
    number = broken = 0
    after = b""
    while some := idempotency_store.list_some(connection, after, _CHUNK):
        number += len(some)
        failed = _undecryptable(some, lambda each: sealing.decrypt(each, keks, connection))
        broken += len(failed)
        after = some[-1].idempotency_key
    opened["first answers"] = number - broken
    if broken:
        yield warning(
            f"{counted(broken, 'stored first answer')} cannot be decrypted",
            "They expire within a day. Until then a device that asks for one gets an error",
        )


def _undecryptable(values: Sequence[_T], decrypt: Callable[[_T], object]) -> list[_T]:
    broken = []
    for value in values:
        try:
            decrypt(value)
        except (BirthmarkError, ValueError):
            broken.append(value)
    return broken


# --- beside the database


def _check_passphrase(settings: Settings, records: list[KekRecord]) -> Iterator[Finding]:
    try:
        passphrase = find_passphrase(settings)
    except ConfigurationError:
        # Without a passphrase there is nothing to check, unless a key depends on it.
        if any(record.source == KekSource.PASSPHRASE for record in records):
            raise
        return
    weakness = find_weakness(passphrase)
    # An upper bound of the entropy. A passphrase of words has far less.
    if weakness is None and len(passphrase) * math.log2(len(set(passphrase))) < _STRONG_BITS:
        weakness = "is short"
    if weakness is not None:
        yield warning(
            f"CA_PASSWORD {weakness}. Who has a copy of the database or of the root's key file may"
            " guess it",
            "Make one with openssl rand -base64 32, set SMA_NEW_CA_PASSWORD to it, and type"
            " sma secrets rotate",
        )
    if records[-1].source == KekSource.PASSPHRASE and PassphraseFile.in_force(settings):
        yield info(
            "The passphrase is in a file beside the database. A copy of the directory has both",
            "Back them up separately",
        )


def _private_files(settings: Settings) -> Iterator[Path]:
    candidates = [
        *root_key_files(settings),
        settings.kek_file,
        settings.tls_key,
        settings.data_dir / PASSPHRASE_FILE,
        PassphraseFile.of(settings).previous,
        *(settings.data_dir / "tls-self").glob("*.pem"),
    ]
    if (file := settings.sqlite_file) is not None:
        # Also the journal files of SQLite, which contain pages of the database.
        candidates += [file, *file.parent.glob(f"{file.name}-*")]
    if settings.database_url is None:
        candidates.append(settings.data_dir)
    yield from (path for path in candidates if path is not None and path.exists())
