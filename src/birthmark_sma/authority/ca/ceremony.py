"""The key ceremony: create the root and the intermediate CA, once for each database.

Called by `sma init`. The root's private key goes into an encrypted file, which the server never
opens. The intermediate's private key goes into the database, encrypted under the key-encryption
key. A crash at any point must leave no authority without its root key.
"""

import contextlib
import re
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.crl_publication import add_root_crl
from birthmark_sma.authority.ca.intermediate_key import seal_ca_key
from birthmark_sma.authority.ca.issuers import trusted_roots
from birthmark_sma.authority.ca.root_key_file import RootKey
from birthmark_sma.authority.ca.store import FIRST_INTERMEDIATE, FIRST_ROOT, CaRole, StoredCa
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.passphrase_file import (
    PassphraseFile,
    find_or_make_passphrase,
    find_passphrase,
)
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.wrapping import create_secrets
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.config import Settings
from birthmark_sma.errors import AlreadyInitialisedError, ConfigurationError, PrivateFileError
from birthmark_sma.pki import certificates, profiles
from birthmark_sma.pki.keys import ca_keys
from birthmark_sma.pki.profiles import MAX_SERIAL_NUMBER_BITS
from birthmark_sma.pki.trust_list import sign_trust_list
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    sync_directory,
    write_private_file,
)
from birthmark_sma.storage.engine import Database

ROOT_KEY_FILE: Final = "simulated-mfg-root-ca.key"
_ROOT_KEY_FILE_OF_POSTGRESQL = "simulated-mfg-root-ca.postgresql.key"


@dataclass(frozen=True, slots=True)
class Ceremony:
    """The result of a ceremony: both certificates, and the file with the root's encrypted key."""

    root: x509.Certificate
    intermediate: x509.Certificate
    root_key_file: Path


# A sandbox's CA is so old that a test can ask for a device certificate that expired long ago.
_SANDBOX_AGE = timedelta(days=1_000)


def hold_ceremony(
    database: Database, settings: Settings, actor: Actor, *, sandbox: bool = False
) -> Ceremony:
    """Create root, intermediate and key-encryption key in a migrated database.

    `sandbox` is recorded in the database for ever, and shows in the names of both certificates.

    Raises AlreadyInitialisedError, with nothing changed, if the database has an authority, and
    PrivateFileError if the file of the root key belongs to another authority. Also raises
    ConfigurationError and DatabaseUnavailableError.
    """
    key_file = root_key_file(settings)
    # Look for the file before the database is read. A concurrent ceremony puts its file in place
    # after its commit: if the file is seen here, its authority is seen below. In the other order
    # that file would look like the key of another authority.
    has_key = key_file.exists()
    with database.read() as connection:
        _refuse_second(key_table_store.find_sizes(connection) is not None)
    if has_key:
        raise foreign_root_key(key_file)
    passphrase = find_or_make_passphrase(settings)
    now = datetime.now(UTC)
    kek_record, opened = create_secrets(KekSecret.of(settings), now)
    kek = opened.keks.newest
    (root_signer, root), (signer, intermediate) = _create_cas(settings, now, sandbox=sandbox)
    pending = write_pending_root_key(key_file, root, root_signer, passphrase)
    stored_root = StoredCa(FIRST_ROOT, to_pem(root), CaRole.ROOT)
    sealed = StoredCa(
        FIRST_INTERMEDIATE,
        to_pem(intermediate),
        CaRole.INTERMEDIATE,
        sealed_private_key=seal_ca_key(signer, kek),
        kek_id=kek.kek_id,
    )

    def add(transaction: Connection) -> None:
        added = key_table_store.add_authority(
            transaction, settings.table_sizes, now, sandbox=sandbox
        )
        _refuse_second(not added)
        kek_store.add_kek(transaction, kek_record)
        ca_store.add_ca(transaction, stored_root, now)
        ca_store.add_ca(transaction, sealed, now)
        add_root_crl(transaction, root_signer)
        signature = sign_trust_list(trusted_roots([stored_root]), root, root_signer)
        ca_store.put_roots_signature(transaction, signature)
        created = {**asdict(settings.table_sizes), "sandbox": sandbox}
        trail.record(transaction, actor, ActKind.AUTHORITY_CREATE, [Subject(None, None, created)])

    try:
        database.transact(add)
    except AlreadyInitialisedError:
        # Another ceremony committed first, so this key belongs to no authority. After any other
        # error the commit may have happened: then the file must stay.
        pending.unlink(missing_ok=True)
        raise
    finish_ceremony(database, settings)
    return Ceremony(root, intermediate, key_file)


def finish_ceremony(database: Database, settings: Settings) -> None:
    """Give the files of root keys their final names, if that has not been done.

    Completes a ceremony or a new root that crashed after its commit. Also remove the files of
    ceremonies that failed. Do nothing if the database has no authority.
    """
    with database.read() as connection:
        roots = [each for each in ca_store.list_cas(connection) if each.role is CaRole.ROOT]
    for root in roots:
        key_file = root_key_path(settings, root.name)
        pending = _pending(key_file, root.load())
        if pending.exists() and not key_file.exists():
            pending.rename(key_file)
            sync_directory(key_file.parent)
    # Only those of first roots. A later root may be about to be committed by another process.
    first = root_key_file(settings)
    for root in roots:
        if root.name == FIRST_ROOT:
            for other in set(first.parent.glob(f"{first.name}.*.new")):
                if other != _pending(first, root.load()):
                    other.unlink(missing_ok=True)


def remove_failed_root_keys(database: Database, settings: Settings) -> None:
    """Remove the keys of new roots that were never committed.

    Call it before `finish_ceremony`, and only while no other process can make a root. A process
    that was killed may have left a COMMIT on its way: this waits until it has ended.
    """
    leftovers = _beside(root_key_file(settings), r"\.[0-9a-f]{16}\.new")
    if not leftovers:
        return

    def find(transaction: Connection) -> list[StoredCa]:
        ca_store.await_changes(transaction)
        return [each for each in ca_store.list_cas(transaction) if each.role is CaRole.ROOT]

    roots = database.transact(find)
    kept = {_pending(root_key_path(settings, each.name), each.load()) for each in roots}
    for path in leftovers:
        if path not in kept:
            path.unlink(missing_ok=True)


def write_pending_root_key(
    key_file: Path, root: x509.Certificate, signer: ca_keys.Signer, passphrase: bytes
) -> Path:
    """Write a new root's key beside its final place, and return the path.

    Call it before the commit, so that no authority exists without its root key. Until
    `finish_ceremony` the file name contains the fingerprint of the root, so that concurrent
    ceremonies do not touch each other's files. A crash before the commit leaves an unused file.
    Raises PrivateFileError.
    """
    make_private_directory(key_file.parent)
    pending = _pending(key_file, root)
    write_private_file(pending, signer.encrypted_pem(passphrase).encode())
    return pending


def root_key_file(settings: Settings) -> Path:
    """Return the path of the first root's encrypted key. It may have been moved away.

    The default name differs for SQLite and PostgreSQL, because an authority on each may share one
    data directory.
    """
    if settings.root_key_file is not None:
        return settings.root_key_file
    plain = settings.data_dir / ROOT_KEY_FILE
    if settings.uses_sqlite:
        return plain
    own = settings.data_dir / _ROOT_KEY_FILE_OF_POSTGRESQL
    # Older versions used one name for both. If the directory has no SQLite database and no file
    # with the new name, the key belongs to PostgreSQL.
    is_of_sqlite = own.exists() or (settings.data_dir / "sma.db").exists()
    return own if is_of_sqlite or not plain.exists() else plain


def foreign_root_key(key_file: Path) -> PrivateFileError:
    """Return the error for a path that holds the root key of another authority."""
    return PrivateFileError(
        f"{key_file} holds the root key of another authority. If that one is yours, set its"
        " DATABASE_URL, or restore its database. For a new one, move the key to a safe place, or"
        " name another file with --root-key-file."
    )


def root_key_path(settings: Settings, name: str) -> Path:
    """Return the path of a root's encrypted key, by the root's name: `root`, `root-2` and so on."""
    first = root_key_file(settings)
    return first.with_name(f"{first.stem}{name.removeprefix(FIRST_ROOT)}{first.suffix}")


def root_key_files(settings: Settings) -> list[Path]:
    """Return the path of the first root's key, and those of later roots that exist."""
    first = root_key_file(settings)
    return [first, *(path for path in _beside(first, "") if path != first)]


def load_root_signers(settings: Settings) -> list[ca_keys.Signer]:
    """Return the keys of the roots whose files are here and open with a known passphrase.

    Never call it in the server. Raises PrivateFileError if others can read a file.
    """
    known = PassphraseFile.of(settings).list_previous() if settings.uses_sqlite else []
    with contextlib.suppress(ConfigurationError):
        known.insert(0, find_passphrase(settings))
    opened = (RootKey(each, None).opened(known) for each in root_key_files(settings))
    return [signer for signer in opened if signer is not None]


def random_serial_number() -> int:
    """Return a positive certificate serial number of exactly 159 bits, 158 of them random.

    So its DER encoding always has 20 octets, the most that RFC 5280, section 4.1.2.2 allows.
    """
    return 1 << (MAX_SERIAL_NUMBER_BITS - 1) | secrets.randbits(MAX_SERIAL_NUMBER_BITS - 1)


def _create_cas(
    settings: Settings, now: datetime, *, sandbox: bool
) -> tuple[tuple[ca_keys.Signer, x509.Certificate], tuple[ca_keys.Signer, x509.Certificate]]:
    """Return key and certificate of a new root, and of a new intermediate under it."""
    if sandbox:
        now -= _SANDBOX_AGE
    root_key, key = (ca_keys.generate(settings.ca_key_type) for _ in range(2))
    prepared = certificates.prepare_root(
        root_key.public_key,
        now=now,
        serial_number=random_serial_number(),
        profile=profiles.SANDBOX_ROOT if sandbox else profiles.ROOT,
    )
    root = certificates.sign(prepared, root_key)
    prepared = certificates.prepare_intermediate(
        key.public_key,
        issuer=root,
        now=now,
        serial_number=random_serial_number(),
        profile=profiles.SANDBOX_INTERMEDIATE if sandbox else profiles.INTERMEDIATE,
    )
    return (root_key, root), (key, certificates.sign(prepared, root_key, issuer=root))


def _refuse_second(initialised: bool) -> None:  # noqa: FBT001  the only thing it takes
    if initialised:
        raise AlreadyInitialisedError(
            "This database already has an authority. Nothing was changed. To see it, type:"
            " sma ca show"
        )


def _beside(key_file: Path, ending: str) -> list[Path]:
    """Return the files of this root's key and of later ones, whose names have this ending.

    The names must match exactly: an authority on PostgreSQL may have its keys in the same folder.
    """
    name = re.compile(rf"{re.escape(key_file.stem)}(-[0-9]+)?{re.escape(key_file.suffix)}{ending}")
    if not key_file.parent.is_dir():
        return []
    return sorted(each for each in key_file.parent.iterdir() if name.fullmatch(each.name))


def _pending(key_file: Path, root: x509.Certificate) -> Path:
    """Return the path of a root's key until its ceremony is complete."""
    return key_file.with_name(f"{key_file.name}.{root.fingerprint(SHA256()).hex()[:16]}.new")


def to_pem(certificate: x509.Certificate) -> str:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM).decode()
