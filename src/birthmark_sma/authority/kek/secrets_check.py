"""Check all secrets: decrypt each one, report which key it depends on, and who can read its file.

Called by `sma secrets` and `sma doctor`. It must change nothing, and its report must contain no
secret. A finding is a problem to fix; a note is for information.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection

from birthmark_sma.authority.authority import open_stored_secrets
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.ceremony import root_key_file
from birthmark_sma.authority.ca.intermediate_key import open_ca_key
from birthmark_sma.authority.ca.root_key_file import RootKey, is_root_key_slow_to_guess
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.passphrase_file import (
    PASSPHRASE_FILE,
    PassphraseFile,
    find_passphrase,
)
from birthmark_sma.authority.kek.passphrase_policy import find_weakness
from birthmark_sma.authority.kek.sources import KekSource
from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKeys
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.key_tables.cache import unwrap_table
from birthmark_sma.authority.provisioning import idempotency_store
from birthmark_sma.authority.provisioning.idempotency import opens
from birthmark_sma.config import Settings
from birthmark_sma.errors import BirthmarkError, ConfigurationError
from birthmark_sma.runtime.secret_files import others_can_read
from birthmark_sma.storage.engine import Database

_ROTATE = "Type: sma secrets rotate"
_CHUNK = 250  # first answers that are read at a time
_STRONG_BITS = 90  # a passphrase with fewer, as `strength_bits` estimates, is reported as short


@dataclass(frozen=True, slots=True)
class SecretsFinding:
    """A finding or a note: a sentence with the observation, and the remedy."""

    what: str
    do: str


@dataclass(frozen=True, slots=True)
class KeyUse:
    """A key-encryption key, and the numbers of values that are wrapped under it."""

    kek_id: int
    source: str
    created_at: str
    key_tables: int
    first_answers: int
    ca_key: bool


@dataclass(slots=True)
class SecretsReport:
    """The result of a check."""

    keys: list[KeyUse] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    """Secret to the place that it comes from, in words."""
    opened: dict[str, int] = field(default_factory=dict)
    """Kind of value to the number of values that were decrypted, which proves the keys."""
    broken_tables: int = 0
    findings: list[SecretsFinding] = field(default_factory=list)
    notes: list[SecretsFinding] = field(default_factory=list)

    def found(self, what: str, do: str) -> None:
        """Add a finding: a problem, and what to do about it."""
        self.findings.append(SecretsFinding(what, do))

    def noted(self, what: str, do: str) -> None:
        """Add a note: a fact, and what to do about it."""
        self.notes.append(SecretsFinding(what, do))


def check_secrets(database: Database, settings: Settings, *, passphrase_from: str) -> SecretsReport:
    """Decrypt all wrapped values, check all private files, and return the report.

    `passphrase_from` is the place where CA_PASSWORD is set, in words, because the settings do not
    have it. Raises the errors of opening the authority if the key-encryption key cannot be
    obtained: WrongSecretError, ConfigurationError, NotInitialisedError, PrivateFileError.
    """
    report = check_wrapped(database, settings)
    with database.read() as connection:
        records = kek_store.list_keks(connection)
        report.keys = _uses(connection, records)
        report.places = _places(settings, records, passphrase_from)
        _count_tables(report, connection)
    check_files(report, settings)
    return report


def check_wrapped(database: Database, settings: Settings) -> SecretsReport:
    """Decrypt all wrapped values and check the passphrase, but no files. Raises as `check_secrets`.

    `sma doctor` uses it, because it checks files separately.
    """
    keks = open_stored_secrets(database, settings).keks
    report = SecretsReport()
    with database.read() as connection:
        records = kek_store.list_keks(connection)
        _check_rotation(report, records)
        _check_tables(report, connection, keks)
        _check_ca_key(report, connection, keks, settings)
        _check_first_answers(report, connection, keks)
    _check_passphrase(report, settings, records)
    return report


def _uses(connection: Connection, records: list[KekRecord]) -> list[KeyUse]:
    tables = key_table_store.count_by_kek(connection)
    answers = idempotency_store.count_by_kek(connection)
    intermediate = ca_store.find_ca(connection, "intermediate")
    return [
        KeyUse(
            kek_id=record.kek_id,
            source=record.source,
            created_at=record.created_at.isoformat(timespec="seconds"),
            key_tables=tables.get(record.kek_id, 0),
            first_answers=answers.get(record.kek_id, 0),
            ca_key=intermediate is not None and intermediate.kek_id == record.kek_id,
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
    root = root_key_file(settings)
    return {
        "CA_PASSWORD": passphrase,
        "key-encryption key": kek,
        "root CA key": f"the file {root}" if root.exists() else "not at hand, as it should be",
    }


# --- in the database


def _check_rotation(report: SecretsReport, records: list[KekRecord]) -> None:
    if len(records) > 1:
        report.found(
            f"A rotation is under way, or was cut off: {len(records)} key-encryption keys are in"
            " force.",
            "Type sma secrets rotate again, with the same new secret, unless it is running",
        )
    if any(record.wrapped_predecessor for record in records[:1]):
        report.found("The newest key still opens one that is gone.", _ROTATE)


def _check_tables(report: SecretsReport, connection: Connection, keks: KeyEncryptionKeys) -> None:
    tables = key_table_store.list_tables(connection)
    broken = [
        table.table_id
        for table in tables
        if not _opens(lambda table=table: unwrap_table(table, keks, connection))  # type: ignore[misc]
    ]
    report.opened["key tables"] = len(tables) - len(broken)
    report.broken_tables = len(broken)
    if broken:
        report.found(
            f"{len(broken)} key tables do not open, the first of them table {broken[0]}.",
            "Restore them from a backup: devices hold keys of them",
        )


def _count_tables(report: SecretsReport, connection: Connection) -> None:
    sizes = key_table_store.find_sizes(connection)
    present = key_table_store.count_tables(connection)
    if sizes is not None and present != sizes.tables:
        report.found(
            f"{present} of {sizes.tables} key tables are there.", "Type: sma tables populate"
        )


def _check_ca_key(
    report: SecretsReport, connection: Connection, keks: KeyEncryptionKeys, settings: Settings
) -> None:
    intermediate = ca_store.find_ca(connection, "intermediate")
    if intermediate is None:
        report.found("There is no intermediate CA.", "Type: sma init")
        return
    try:
        open_ca_key(connection, intermediate, keks, lambda: find_passphrase(settings))
    except (BirthmarkError, ValueError):
        report.opened["CA key"] = 0
        report.found("The intermediate's private key does not open.", "Restore it from a backup")
    else:
        report.opened["CA key"] = 1
    if intermediate.encrypted_private_key is not None:
        report.found(
            "The intermediate's private key is in the older form, PKCS#8 under CA_PASSWORD, which"
            " is quick to guess at.",
            _ROTATE,
        )


def _check_first_answers(
    report: SecretsReport, connection: Connection, keks: KeyEncryptionKeys
) -> None:
    opened = broken = 0
    after = b""
    while some := idempotency_store.list_some(connection, after, _CHUNK):
        for answer in some:
            if _opens(lambda answer=answer: opens(answer, keks, connection)):  # type: ignore[misc]
                opened += 1
            else:
                broken += 1
        after = some[-1].idempotency_key
    report.opened["first answers"] = opened
    if broken:
        report.found(
            f"{broken} first answers do not open.",
            "They go by themselves within a day; a device that asks for one gets an error until"
            " then",
        )


def _opens(opening: Callable[[], object]) -> bool:
    try:
        opening()
    except BirthmarkError:
        return False
    return True


# --- beside the database


def _check_passphrase(report: SecretsReport, settings: Settings, records: list[KekRecord]) -> None:
    try:
        passphrase = find_passphrase(settings)
    except ConfigurationError:
        # Without a passphrase there is nothing to check, unless a key depends on it.
        if any(record.source == KekSource.PASSPHRASE for record in records):
            raise
        return
    weakness = find_weakness(passphrase)
    if weakness is None and strength_bits(passphrase) < _STRONG_BITS:
        weakness = "is short"
    if weakness is not None:
        report.found(
            f"CA_PASSWORD {weakness}: who has a copy of the database or of the root's key file may"
            " guess it.",
            "Make one with openssl rand -base64 32, give it as SMA_NEW_CA_PASSWORD, and type:"
            " sma secrets rotate",
        )
    if records[-1].source == KekSource.PASSPHRASE and PassphraseFile.in_force(settings):
        report.noted(
            "The passphrase lies beside the database: who copies the directory has both.",
            "Back them up apart from each other",
        )


def strength_bits(passphrase: bytes) -> float:
    """Return an upper bound of a passphrase's entropy in bits.

    It is the length times log2 of the number of different characters. A passphrase of words has
    far less.
    """
    return len(passphrase) * math.log2(max(len(Counter(passphrase)), 1))


def check_files(report: SecretsReport, settings: Settings) -> None:
    """Report private files that others can read, and files that a rotation left behind."""
    for path in _private_files(settings):
        if others_can_read(path):
            mode = "700" if path.is_dir() else "600"
            report.found(f"{path} can be read by others.", f"Type: chmod {mode} {path}")
    root = root_key_file(settings)
    if root.exists():
        report.noted(
            f"The root's private key is at hand, in {root}. The server never needs it.",
            "Move it to a safe place",
        )
        if not others_can_read(root) and not is_root_key_slow_to_guess(root):
            report.found(
                f"{root} is quick to guess at: it is encrypted as older versions did.",
                "Type sma init with the CA_PASSWORD that opens it: it encrypts the key anew",
            )
    file = PassphraseFile.in_force(settings)
    if file is not None and file.previous.exists():
        report.noted(
            f"{file.previous} holds passphrases from before a rotation: backups from then open with"
            " them alone.",
            "Once no such backup is left, type: sma secrets forget-previous",
        )
    left = [] if file is None else file.leftovers
    left += RootKey(root, None).leftovers
    for path in left:
        report.found(f"{path} was left behind by a rotation that was cut off.", _ROTATE)


def _private_files(settings: Settings) -> Iterator[Path]:
    candidates = [
        root_key_file(settings),
        settings.kek_file,
        settings.tls_key,
        settings.data_dir / PASSPHRASE_FILE,
        PassphraseFile.of(settings).previous,
        *(settings.data_dir / "tls-self").glob("*.pem"),
    ]
    if settings.uses_sqlite:
        file = Path(settings.resolved_database_url.removeprefix("sqlite:///"))
        # Also the journal files of SQLite, which contain pages of the database.
        candidates += [file, *file.parent.glob(f"{file.name}-*")]
    if settings.database_url is None:
        candidates.append(settings.data_dir)
    yield from (path for path in candidates if path is not None and path.exists())
