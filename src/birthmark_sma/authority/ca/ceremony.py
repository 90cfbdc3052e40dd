"""The ceremony: create the root and the intermediate, once for a database.

The root's private key goes to an encrypted file of its own, which the server never opens; the
intermediate's goes into the database, sealed under the key-encryption key.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.crl_publication import add_root_crl
from birthmark_sma.authority.ca.intermediate_key import seal_ca_key
from birthmark_sma.authority.ca.root_key_file import RootKey
from birthmark_sma.authority.ca.store import StoredCa
from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.passphrase_file import find_or_make_passphrase, find_passphrase
from birthmark_sma.authority.kek.sources import KekSecret
from birthmark_sma.authority.kek.wrapping import create_secrets
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.config import Settings
from birthmark_sma.errors import AlreadyInitialisedError, ConfigurationError, PrivateFileError
from birthmark_sma.pki import certificates, profiles
from birthmark_sma.pki.keys import ca_keys
from birthmark_sma.pki.profiles import MAX_SERIAL_NUMBER_BITS, Profile
from birthmark_sma.runtime.secret_files import (
    make_private_directory,
    sync_directory,
    write_private_file,
)
from birthmark_sma.storage.engine import Database

ROOT_KEY_FILE = "simulated-mfg-root-ca.key"
_ROOT_KEY_FILE_OF_POSTGRESQL = "simulated-mfg-root-ca.postgresql.key"


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What was created: both certificates, and the file with the root's encrypted key."""

    root: x509.Certificate
    intermediate: x509.Certificate
    root_key_file: Path


@dataclass(frozen=True, slots=True)
class _Founding:
    """What root and intermediate carry, and how long ago they begin."""

    root: Profile
    intermediate: Profile
    age: timedelta


_PRODUCTION = _Founding(profiles.ROOT, profiles.INTERMEDIATE, timedelta(0))
# Old enough that devices can be certified whose certificates have ended long ago.
_SANDBOX = _Founding(profiles.SANDBOX_ROOT, profiles.SANDBOX_INTERMEDIATE, timedelta(days=1_000))


def hold_ceremony(database: Database, settings: Settings, *, sandbox: bool = False) -> Ceremony:
    """Create root and intermediate, and the key-encryption key, in a migrated database.

    What `sandbox` says is recorded for ever, and is in the names of root and intermediate.

    Raises AlreadyInitialisedError, with nothing changed, where the database has an authority, and
    PrivateFileError where the root key's file belongs to another authority.
    """
    key_file = root_key_file(settings)
    # In this order: a key that another ceremony leaves at this moment comes after its commit.
    has_key = key_file.exists()
    with database.read() as connection:
        _refuse_second(key_table_store.find_sizes(connection) is not None)
    if has_key:
        raise foreign_root_key(key_file)
    passphrase = find_or_make_passphrase(settings)
    now = datetime.now(UTC)
    kek_record, opened = create_secrets(KekSecret.of(settings), now)
    kek = opened.keks.newest
    founding = _SANDBOX if sandbox else _PRODUCTION
    root_signer, root = _create_root(settings, founding, now)
    intermediate_signer, intermediate = _create_intermediate(
        settings, founding, root_signer, root, now
    )

    # Until the commit the key bears the name of its root, so that no other ceremony touches it. A
    # crash before the commit leaves a key of nothing, one after it a key that `finish_ceremony`
    # gives its final name.
    make_private_directory(key_file.parent)
    pending = _pending(key_file, root)
    write_private_file(pending, root_signer.encrypted_pem(passphrase).encode())
    try:
        with database.write() as transaction:
            added = key_table_store.add_authority(
                transaction, settings.table_sizes, now, sandbox=sandbox
            )
            _refuse_second(not added)
            kek_store.add_kek(transaction, kek_record)
            ca_store.add_ca(transaction, StoredCa("root", _pem(root)), now)
            ca_store.add_ca(
                transaction,
                StoredCa(
                    "intermediate",
                    _pem(intermediate),
                    sealed_private_key=seal_ca_key(intermediate_signer, kek),
                    kek_id=kek.kek_id,
                ),
                now,
            )
            add_root_crl(transaction, root, root_signer, until=intermediate.not_valid_after_utc)
    except AlreadyInitialisedError:
        pending.unlink(missing_ok=True)
        raise
    finish_ceremony(database, settings)
    return Ceremony(root, intermediate, key_file)


def finish_ceremony(database: Database, settings: Settings) -> None:
    """Give the root key's file its final name, where a crash came between the commit and that.

    Keys of ceremonies that came to nothing are removed once there is an authority.
    """
    with database.read() as connection:
        root = ca_store.find_ca(connection, "root")
    if root is None:
        return
    key_file = root_key_file(settings)
    pending = _pending(key_file, x509.load_pem_x509_certificate(root.certificate.encode()))
    if pending.exists() and not key_file.exists():
        pending.rename(key_file)
        sync_directory(key_file.parent)
    for other in key_file.parent.glob(f"{key_file.name}.*.new"):
        if other != pending:
            other.unlink(missing_ok=True)


def root_key_file(settings: Settings) -> Path:
    """Return where the root's encrypted key is kept until somebody moves it to a safe place.

    SQLite's authority and one on PostgreSQL may share a data directory, and so have two names.
    """
    if settings.root_key_file is not None:
        return settings.root_key_file
    plain = settings.data_dir / ROOT_KEY_FILE
    if settings.uses_sqlite:
        return plain
    own = settings.data_dir / _ROOT_KEY_FILE_OF_POSTGRESQL
    # Older versions had one name for both: without SQLite beside it, the key is PostgreSQL's.
    is_of_sqlite = own.exists() or (settings.data_dir / "sma.db").exists()
    return own if is_of_sqlite or not plain.exists() else plain


def foreign_root_key(key_file: Path) -> PrivateFileError:
    """Return the error for a place that holds the root's key of an authority that is elsewhere."""
    return PrivateFileError(
        f"{key_file} holds the root key of another authority. If that one is yours, set its"
        " DATABASE_URL, or restore its database. For a new one, move the key to a safe place, or"
        " name another file with --root-key-file."
    )


def load_root_signer(settings: Settings) -> ca_keys.Signer | None:
    """Return the root's key, where its file is here and CA_PASSWORD opens it.

    Raises PrivateFileError where others can read the file.
    """
    try:
        passphrase = find_passphrase(settings)
    except ConfigurationError:
        return None
    return RootKey(root_key_file(settings), None).opened([passphrase])


def random_serial_number() -> int:
    """Return a positive certificate serial number of exactly 159 bits, 158 of them random."""
    return 1 << (MAX_SERIAL_NUMBER_BITS - 1) | secrets.randbits(MAX_SERIAL_NUMBER_BITS - 1)


def _create_root(
    settings: Settings, founding: _Founding, now: datetime
) -> tuple[ca_keys.Signer, x509.Certificate]:
    key = ca_keys.generate(settings.ca_key_type)
    prepared = certificates.prepare_root(
        key.public_key,
        now=now - founding.age,
        serial_number=random_serial_number(),
        profile=founding.root,
    )
    return key, certificates.sign(prepared, key)


def _create_intermediate(
    settings: Settings,
    founding: _Founding,
    root_signer: ca_keys.Signer,
    root: x509.Certificate,
    now: datetime,
) -> tuple[ca_keys.Signer, x509.Certificate]:
    key = ca_keys.generate(settings.ca_key_type)
    prepared = certificates.prepare_intermediate(
        key.public_key,
        issuer=root,
        now=now - founding.age,
        serial_number=random_serial_number(),
        profile=founding.intermediate,
    )
    return key, certificates.sign(prepared, root_signer, issuer=root)


def _refuse_second(initialised: bool) -> None:  # noqa: FBT001  the only thing it takes
    if initialised:
        raise AlreadyInitialisedError(
            "This database holds an authority already; nothing was changed. To see it, type:"
            " sma ca show"
        )


def _pending(key_file: Path, root: x509.Certificate) -> Path:
    """Return the name of a root's key while its ceremony is under way."""
    return key_file.with_name(f"{key_file.name}.{root.fingerprint(SHA256()).hex()[:16]}.new")


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
