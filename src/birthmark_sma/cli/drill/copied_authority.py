"""Copy an authority for a drill: a backup that is restored elsewhere.

`run` calls it. The source is only read. The copy has the secrets of the source, so it is as private
as a backup with secrets: it must never outlive the drill unless the operator keeps it.
"""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from birthmark_sma.authority.acts.actor import Actor, Source
from birthmark_sma.authority.operations.backup import Bar, make_backup
from birthmark_sma.authority.operations.restore import restore_backup
from birthmark_sma.config import Settings
from birthmark_sma.errors import BackupPlaceTakenError, ConfigurationError
from birthmark_sma.runtime.secret_files import make_private_directory

ACTOR = Actor("sma drill", Source.COMMAND_LINE)
"""The actor of all acts on a copy."""
_MIDDLE = "_drill_"
_MOST_NAME = 40  # a name has up to 63 bytes in PostgreSQL
_CONNECT_SECONDS = 10


@contextmanager
def copied_authority(settings: Settings, bar: Bar, keep: Path | None) -> Iterator[Settings]:
    """Copy the authority of the settings, and yield the settings of the copy.

    With PostgreSQL the copy is a new database on the same server. The copy is deleted at the end.
    With `keep`, a new directory, it stays: `describe_copy` says where.

    Raises BackupPlaceTakenError if the directory to keep exists, ConfigurationError if PostgreSQL
    creates no database, and the errors of `make_backup` and `restore_backup`.
    """
    if keep is not None and keep.exists():
        raise BackupPlaceTakenError(f"{keep} exists already and is never overwritten.")
    with tempfile.TemporaryDirectory(prefix="sma-drill-") as temporary:
        place = Path(temporary) if keep is None else keep.absolute()
        make_private_directory(place)
        with _database(settings, is_kept=keep is not None) as url:
            copy = settings.model_copy(
                update={"data_dir": place / "data", "database_url": url, "root_key_file": None}
            )
            # In the temporary directory also if the copy is kept: a backup has no use there.
            backup = make_backup(settings, Path(temporary) / "backup", bar, with_secrets=True)
            restore_backup(copy, backup.folder, bar, ACTOR)
            yield copy


def describe_copy(copy: Settings) -> dict[str, str]:
    """Return where a copy is: its data directory and, with PostgreSQL, the name of its database."""
    where = {"data_dir": str(copy.data_dir)}
    if not copy.uses_sqlite:
        where["database"] = str(conninfo_to_dict(copy.resolved_database_url)["dbname"])
    return where


@contextmanager
def _database(settings: Settings, *, is_kept: bool) -> Iterator[SecretStr | None]:
    """Create an empty database beside that of the settings, and yield its URL; None for SQLite."""
    if settings.uses_sqlite:
        yield None
        return
    parts = conninfo_to_dict(settings.resolved_database_url)
    name = f"{str(parts['dbname'])[:_MOST_NAME]}{_MIDDLE}{secrets.token_hex(4)}"
    _execute(settings, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        # All parameters are in the query, where several hosts are allowed, too.
        yield SecretStr(f"postgresql:///?{urlencode({**parts, 'dbname': name}, quote_via=quote)}")
    finally:
        if not is_kept:
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            _execute(settings, drop)


def _execute(settings: Settings, statement: sql.Composed) -> None:
    """Run a statement outside of a transaction, on a connection to the source's database."""
    try:
        with psycopg.connect(
            settings.resolved_database_url,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
        ) as connection:
            connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        raise ConfigurationError(
            "A drill needs a database of its own, and this role of PostgreSQL may not create one."
            " Allow it: ALTER ROLE ... CREATEDB. Or use a role that may, in DATABASE_URL"
        ) from None
    except psycopg.Error as error:
        raise ConfigurationError(
            f"The database of the drill cannot be created or dropped: {error}"
        ) from None
