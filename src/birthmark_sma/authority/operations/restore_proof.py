"""Prove that a restored database is complete and usable.

`restore` calls `prove` before it says that a backup was restored, and a move calls `prove_usable`.
It must not change the database.
"""

from contextlib import suppress
from dataclasses import dataclass

from cryptography import x509

from birthmark_sma.authority.ca.ceremony import random_serial_number
from birthmark_sma.authority.ca.intermediate_key import open_issuers
from birthmark_sma.authority.ca.issuers import OpenIssuers
from birthmark_sma.authority.devices.store import Device, sample_devices
from birthmark_sma.authority.kek.wrapping import open_stored_secrets
from birthmark_sma.authority.key_tables.cache import open_key_table_cache
from birthmark_sma.authority.operations.backup import Bar, fingerprints
from birthmark_sma.authority.operations.backup_manifest import Manifest, Progress, take_inventory
from birthmark_sma.config import Settings
from birthmark_sma.counts import counted
from birthmark_sma.errors import BackupError, PathRefusedError
from birthmark_sma.pki.path_validation import verify_path
from birthmark_sma.protocol.key_table import TableSizes
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.migration import check_schema
from birthmark_sma.storage.outages.deadlines import LONG_SECONDS

SAMPLE = 500
"""The number of devices whose certificates are verified after a restore."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The numbers of rows counted, key tables opened, and device certificates verified."""

    rows: int
    key_tables: int
    devices: int


@dataclass(frozen=True, slots=True)
class Usable:
    """The numbers of key tables opened, and of device certificates verified."""

    key_tables: int
    devices: int


def prove(database: Database, settings: Settings, manifest: Manifest, bar: Bar) -> Proof:
    """Prove that the restored database is complete and usable; raise BackupError if it is not.

    Compare row counts, the end of the audit log and the certificates with the manifest. Then
    `prove_usable`.
    """
    check_schema(database)
    with database.read(LONG_SECONDS) as connection, bar("Counting", "steps") as progress:
        found = take_inventory(connection, progress)
        marks = fingerprints(connection)
    for table, rows in manifest.rows.items():
        if found.rows[table] != rows:
            raise BackupError(
                f"The proof of the backup failed: {table} has {counted(found.rows[table], 'row')},"
                f" and the manifest says {rows:,}."
            )
    trail = (manifest.highest_audit_id, manifest.newest_audit_at)
    if (found.highest_audit_id, found.newest_audit_at) != trail or marks != manifest.certificates:
        raise BackupError(
            "The proof of the backup failed: the end of the audit log or the certificates differ"
            " from the manifest."
        )
    usable = prove_usable(database, settings, bar)
    return Proof(sum(manifest.rows.values()), usable.key_tables, usable.devices)


def prove_usable(database: Database, settings: Settings, bar: Bar) -> Usable:
    """Prove that these settings open the database; raise BackupError if they do not.

    1. Decrypt all key tables and the keys of the intermediates.
    2. Verify the certificates of a random sample of devices.

    Also raises the errors of opening the secrets.
    """
    opened = open_stored_secrets(database, settings)
    table_cache = open_key_table_cache(database, opened.keks)
    issuers = open_issuers(database, settings, opened)
    with bar("Verifying devices", "steps") as progress:
        devices = _verify_sample(database, issuers, table_cache.sizes, progress)
    return Usable(table_cache.sizes.tables, devices)


def _verify_sample(
    database: Database, issuers: OpenIssuers, sizes: TableSizes, progress: Progress
) -> int:
    with database.read() as connection:
        sample = sample_devices(connection, f"{random_serial_number():x}", limit=SAMPLE)
    for done, device in enumerate(sample, 1):
        _verify(device, issuers, sizes)
        progress(done, len(sample))
    return len(sample)


def _verify(device: Device, issuers: OpenIssuers, sizes: TableSizes) -> None:
    """Raise BackupError unless the device's certificate chains to a root and matches its row.

    Its key tables must also be tables that the authority has.
    """
    # Verified at the time of provisioning, because the certificate may have expired since.
    leaf = x509.load_pem_x509_certificate(device.device_certificate.encode())
    issuer = issuers.issuer(device.certificate_issuer)
    named = ""
    if issuer is not None:
        root = issuers.root_of(issuer.name).certificate
        with suppress(PathRefusedError):
            named = verify_path(leaf, [issuer.certificate], root=root, now=device.provisioned_at)
    tables = all(sizes.has_table(table) for table in device.table_assignments)
    same_number = f"{leaf.serial_number:x}" == device.certificate_serial
    if named != device.device_serial or not (tables and same_number):
        raise BackupError(
            f"The proof failed: the certificate of {device.device_serial} does not chain to the"
            " root, or is not the one that was registered."
        )
