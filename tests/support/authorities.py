"""Small, fast authorities for tests, each in a database of its own.

A key-encryption key from a file saves 0.2 s of scrypt, and P-256 saves the seconds that RSA-4096
takes. Nothing else differs from an authority that an operator creates.
"""

import secrets
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import event, text

from birthmark_sma.authority.authority import Authority, open_authority
from birthmark_sma.authority.initialisation import initialise
from birthmark_sma.authority.provisioning.service import Provisioned, ProvisioningRequest
from birthmark_sma.config import Settings, load_settings
from birthmark_sma.storage import migration
from birthmark_sma.storage.engine import Database
from tests.support.cameras.camera import Camera, new_key, public_pem
from tests.support.devices.actors import ACTOR
from tests.support.schemas import give_schema

PASSPHRASE = "a passphrase for tests alone"
TABLES = 6
KEYS_PER_TABLE = 16


def quiet(_present: int, _wanted: int) -> None:
    """Ignore progress. It takes the place of a progress bar."""


def write_kek_file(folder: Path) -> Path:
    """Write a new key-encryption key into a folder unless it has one. Return its path."""
    path = folder / "key-encryption.key"
    if not path.exists():
        path.touch(0o600)  # the product refuses a key file that others can read
        path.write_bytes(secrets.token_bytes(32))
    return path


def small_settings(folder: Path, database_url: str | None, **flags: Any) -> Settings:
    """Return the settings of a small authority with its files in `folder`. `flags` override."""
    defaults: Mapping[str, Any] = {
        "data_dir": folder,
        "database_url": database_url,
        "ca_password": PASSPHRASE,
        "ca_key_type": "ec-p256",
        "tables": TABLES,
        "keys_per_table": KEYS_PER_TABLE,
        "kek_file": write_kek_file(folder),
    }
    return load_settings({**defaults, **flags}, {})


@contextmanager
def new_authority(settings: Settings) -> Iterator[Authority]:
    """Create an authority if there is none, and keep it open until the end of the block."""
    give_schema(settings.resolved_database_url)
    initialise(settings, quiet, actor=ACTOR)
    with opened(settings) as authority:
        yield authority


@contextmanager
def opened(settings: Settings) -> Iterator[Authority]:
    """Open an existing authority until the end of the block."""
    authority = open_authority(settings)
    try:
        yield authority
    finally:
        authority.close()


def request_for(device_serial: str, **fields: Any) -> ProvisioningRequest:
    """Return a request to provision a device, with a new key unless `fields` has one."""
    if "csr" not in fields and "device_public_key" not in fields:
        fields["device_public_key"] = public_pem(new_key())
    return ProvisioningRequest(device_serial, fields.pop("device_family", "Test"), **fields)


def camera_of(device_serial: str, provisioned: Provisioned) -> Camera:
    """Return the camera that received this provisioning response."""
    assert provisioned.table_keys is not None
    return Camera.of(
        device_serial,
        {
            "table_keys": provisioned.table_keys,
            "simulated_nuc_hash": provisioned.simulated_nuc_hash,
        },
    )


def new_camera(authority: Authority, device_serial: str, **fields: Any) -> Camera:
    """Provision a device in this process and return its camera."""
    request = request_for(device_serial, **fields)
    return camera_of(device_serial, authority.provisioner.provision_device(request))


# --- the database, seen from outside


def count_activity(*authorities: Authority) -> None:
    """Add the activity of devices to the database, as the background task of a server does."""
    for authority in authorities:
        authority.validator.activity.work(datetime.now(UTC))


def rows_of(database: Database, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with database.read() as connection:
        return [tuple(row) for row in connection.execute(text(query), parameters)]


def execute(database: Database, statement: str, **parameters: Any) -> None:
    """Execute a statement on the database, past the product's own code."""
    with database.write() as transaction:
        transaction.execute(text(statement), parameters)


def migrate_to(database: Database, revision: str) -> None:
    """Migrate a database to a revision, as an earlier version of this program did."""
    config = Config()
    config.set_main_option("script_location", str(Path(migration.__file__).parent / "migrations"))
    with database.write() as transaction:
        config.attributes["connection"] = transaction
        command.upgrade(config, revision)


@contextmanager
def counted_statements(database: Database) -> Iterator[list[str]]:
    """Yield a list to which every SQL statement of the block is appended."""
    statements: list[str] = []

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


@contextmanager
def writers_held_up(database_url: str) -> Iterator[None]:
    """Block every writer of the database until the end of the block. Readers are not blocked."""
    if database_url.startswith("sqlite:///"):
        sqlite = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
        try:
            sqlite.execute("BEGIN IMMEDIATE")
            yield
        finally:
            sqlite.close()
        return
    with psycopg.connect(database_url) as postgresql:
        postgresql.execute(
            "LOCK TABLE registered_devices, idempotent_responses, validation_history,"
            " key_tables, authority IN EXCLUSIVE MODE"
        )
        yield


# --- other programs


def openssl(*arguments: str | Path, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run an `openssl` command with a timeout of 60 s. Its exit code is not checked."""
    return subprocess.run(
        ["openssl", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
