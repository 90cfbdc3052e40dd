"""Create an authority, once for each database: the schema, the CA (key ceremony), the key tables.

Called by `sma init`, `sma serve` and `sma tables populate`. It never overwrites what exists, and
every function closes the database that it opened.
"""

from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection

from birthmark_sma.authority.acts import trail
from birthmark_sma.authority.acts.actor import ActKind, Actor
from birthmark_sma.authority.acts.trail import Subject
from birthmark_sma.authority.audit_chain.earlier import chain_earlier
from birthmark_sma.authority.authority import opened_database
from birthmark_sma.authority.ca import ceremony
from birthmark_sma.authority.ca.store import find_authority_id
from birthmark_sma.authority.data_directory import (
    check_may_create,
    check_same,
    find_known,
    remember,
)
from birthmark_sma.authority.kek.passphrase_file import find_given_passphrase, find_passphrase
from birthmark_sma.authority.kek.passphrase_policy import check_new_passphrase
from birthmark_sma.authority.kek.wrapping import open_stored_secrets
from birthmark_sma.authority.key_tables import cache as key_table_cache
from birthmark_sma.authority.key_tables import store as key_table_store
from birthmark_sma.authority.sandbox.guards import check_kind, check_settings
from birthmark_sma.config import Settings
from birthmark_sma.errors import AlreadyInitialisedError
from birthmark_sma.runtime.secret_files import make_private_directory
from birthmark_sma.storage.engine import Database, open_database
from birthmark_sma.storage.migration import check_schema, migrate
from birthmark_sma.storage.schema import HEAD_REVISION

_FIRST_WITH_CHAINS = "0016"


def is_initialised(settings: Settings) -> bool:
    """Return True if the database has a complete authority.

    Raises SchemaMismatchError if the database is empty or its schema is of another version, or
    DatabaseUnavailableError.
    """
    if _is_nothing_there(settings):
        return False
    with opened_database(settings) as database, database.read() as connection:
        sizes = key_table_store.find_sizes(connection)
        return sizes is not None and key_table_store.count_tables(connection) == sizes.tables


def check_may_be_sandbox(settings: Settings) -> None:
    """Raise ConfigurationError if the settings or an existing authority are not for a sandbox."""
    check_settings(settings)
    if _is_nothing_there(settings):
        return
    database = open_database(settings.resolved_database_url)
    try:
        _check_kind(database, sandbox=True)
    finally:
        database.close()


def check_may_be_created(settings: Settings) -> None:
    """Raise PrivateFileError or ConfigurationError if a new SQLite database must not be created.

    A root key file without a SQLite database belongs to an authority on PostgreSQL: DATABASE_URL
    is missing. A new SQLite database would hide that key file: see `ceremony.root_key_file`.
    ConfigurationError is for a data directory that had an authority, and for a passphrase that is
    easy to guess.
    """
    known = find_known(settings)
    key_file = ceremony.root_key_file(settings)
    # The key file first: another process creates the database before its key file. In the other
    # order, its new key file could look like one without a database.
    has_key = key_file.exists()
    if _is_nothing_there(settings):
        check_may_create(settings, known)
        if has_key:
            raise ceremony.foreign_root_key(key_file)
        _check_passphrase(settings)


def initialise(
    settings: Settings,
    progress: Callable[[int, int], None],
    actor: Actor,
    *,
    sandbox: bool = False,
) -> ceremony.Ceremony | None:
    """Create what is missing: the schema, the CA (key ceremony), the key tables.

    Return the ceremony, or None if it was held before. Each step is a transaction or can be
    repeated, so run this again after an interruption. `progress(tables_present, tables_wanted)` is
    called while tables are created. Raises ConfigurationError, PrivateFileError, KeyTablesError,
    WrongSecretError or DatabaseUnavailableError.
    """
    if sandbox:
        check_settings(settings)
    check_may_be_created(settings)
    if settings.uses_sqlite:
        make_private_directory(settings.data_dir)
    else:
        # Before anything is written: with PostgreSQL there is no place to store a generated
        # passphrase, so a missing one is an error (docs/adr/0003).
        find_passphrase(settings)
    # Before the database is read, because another process may just create the authority.
    known = find_known(settings)
    database = open_database(settings.resolved_database_url)
    try:
        # Before the migration, so that an authority of the other kind is not changed, and none that
        # is not the one of this data directory.
        if _check_kind(database, sandbox=sandbox) is None:
            check_may_create(settings, known)
            _check_passphrase(settings)
        else:
            check_is_known(settings, database)
        migrate(database, partial(record_migration, actor))
        check_schema(database)
        ceremony.finish_ceremony(database, settings)
        try:
            held = ceremony.hold_ceremony(database, settings, actor, sandbox=sandbox)
        except AlreadyInitialisedError:  # earlier, or by another process at the same time
            held = None
            # Checked again, because the other process may have created the other kind.
            _check_kind(database, sandbox=sandbox)
        populate_tables(database, settings, progress, actor if held is None else None)
        remember_authority(settings, database)
        return held
    finally:
        database.close()


def check_is_known(settings: Settings, database: Database) -> None:
    """Raise ConfigurationError if the data directory had another authority than the database has.

    This works with every version of the schema that has an authority.
    """
    with database.read() as connection:
        authority_id = find_authority_id(connection)
    if authority_id is not None:
        check_same(settings, authority_id)


def remember_authority(settings: Settings, database: Database) -> None:
    """Record in the data directory that it has the authority of this database."""
    with database.read() as connection:
        authority_id = find_authority_id(connection)
    if authority_id is not None:
        remember(settings, authority_id)


def record_migration(actor: Actor, transaction: Connection, before: str) -> None:
    """Record the migration of an authority from a schema revision, in its transaction.

    If there were no chains before, this chains all audit rows and acts first.
    """
    if before < _FIRST_WITH_CHAINS:
        chain_earlier(transaction)
    subject = Subject(None, {"schema": before}, {"schema": HEAD_REVISION})
    trail.record(transaction, actor, ActKind.AUTHORITY_MIGRATE, [subject])


def populate_tables(
    database: Database,
    settings: Settings,
    progress: Callable[[int, int], None],
    actor: Actor | None,
) -> int:
    """Create the missing key tables; return their number. See `key_tables.cache.populate`."""
    key_table_cache.check_sizes(database, settings)
    opened = open_stored_secrets(database, settings)
    return key_table_cache.populate(database, opened.keks, progress, actor)


def _is_nothing_there(settings: Settings) -> bool:
    """Return True if SQLite's file does not exist. Opening the database would create it."""
    return settings.database_url is None and not (settings.data_dir / "sma.db").exists()


def _check_passphrase(settings: Settings) -> None:
    """Raise ConfigurationError if the passphrase for a new authority is easy to guess."""
    passphrase = find_given_passphrase(settings)
    if passphrase is not None:
        check_new_passphrase(passphrase)


def _check_kind(database: Database, *, sandbox: bool) -> bool | None:
    """Raise ConfigurationError if the existing authority was created as the other kind.

    Return True if it is a sandbox, False if not, None if there is no authority yet.
    """
    with database.read() as connection:
        created_as_sandbox = key_table_store.was_created_as_sandbox(connection)
    if created_as_sandbox is not None:
        check_kind(created_as_sandbox, sandbox=sandbox)
    return created_as_sandbox
