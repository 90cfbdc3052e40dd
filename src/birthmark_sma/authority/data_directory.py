"""Remember which authority a data directory had, in a small file without secrets.

A forgotten DATABASE_URL means SQLite in the data directory. So each opening of a database compares
the two, and a second authority is never created by accident. `initialisation.py`, `authority.py`,
the command line, restores and moves call this module. A directory without the file, such as the
disk of a hosting platform after a restart, knows nothing and refuses nothing.
"""

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from birthmark_sma.config import Settings
from birthmark_sma.errors import ConfigurationError, PrivateFileError
from birthmark_sma.runtime.secret_files import write_private_file

_FILE = "authority.json"
_MOST_BYTES = 10_000  # of a file that is read
_SHOWN = 16  # hex digits of an authority's id


class KnownAuthority(BaseModel):
    """The authority that a data directory had.

    `authority_id` is that of `ca.store.find_authority_id`, `database` a description without user
    and password, and `last_used` the last start of a server, or the last init, restore or move.
    """

    model_config = ConfigDict(frozen=True)

    authority_id: str = Field(pattern=r"^[0-9a-f]{64}$")
    database: str = Field(max_length=1_000)
    is_postgresql: bool
    last_used: AwareDatetime

    def __str__(self) -> str:
        used = self.last_used.astimezone(UTC)
        return (
            f"authority {self.authority_id[:_SHOWN]} in {self.database}, last used at"
            f" {used:%Y-%m-%d %H:%M:%S} UTC"
        )


def describe_database(url: str) -> str:
    """Return kind and place of a database, without user and password."""
    if url.startswith("sqlite:///"):
        return f"SQLite, {Path(url.removeprefix('sqlite:///')).absolute()}"
    with contextlib.suppress(ProgrammingError):
        parts = conninfo_to_dict(url)
        name, host, port = (parts.get(each) for each in ("dbname", "host", "port"))
        described = "PostgreSQL" if name is None else f"PostgreSQL, database {name}"
        if host is not None:
            described += f" on {host}" + ("" if port is None else f", port {port}")
        return described
    return "PostgreSQL"


def find_known(settings: Settings) -> KnownAuthority | None:
    """Return the authority that the data directory had, or None if nothing is known.

    Raises ConfigurationError if the file is damaged.
    """
    path = settings.data_dir / _FILE
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError:  # none, or of another user
        return None
    try:
        return KnownAuthority.model_validate_json(content)
    except ValidationError:
        raise ConfigurationError(
            f"{path} is damaged. It says which authority this data directory had. Check"
            " DATABASE_URL, then remove the file"
        ) from None


def remember(settings: Settings, authority_id: str) -> None:
    """Record that the data directory has this authority, in the database of the settings.

    Do nothing if there is no such directory, or if it cannot be written: the file is only a help.
    """
    if not settings.data_dir.is_dir():
        return
    url = settings.resolved_database_url
    known = KnownAuthority(
        authority_id=authority_id,
        database=describe_database(url)[:1_000],
        is_postgresql=not settings.uses_sqlite,
        last_used=datetime.now(UTC),
    )
    text = json.dumps(known.model_dump(mode="json"), indent=2) + "\n"
    with contextlib.suppress(OSError, PrivateFileError):
        write_private_file(settings.data_dir / _FILE, text.encode(), replace=True)


def check_not_forgotten(settings: Settings) -> None:
    """Raise ConfigurationError if DATABASE_URL is not set, and the authority is in PostgreSQL."""
    known = find_known(settings) if settings.database_url is None else None
    if known is not None and known.is_postgresql:
        raise ConfigurationError(
            "DATABASE_URL is not set, so this command would use SQLite. But the data directory"
            f" {settings.data_dir} has {known}. Set DATABASE_URL, or use another --data-dir."
            f" {_how_to_forget(settings)}"
        )


def check_may_create(settings: Settings, known: KnownAuthority | None) -> None:
    """Raise ConfigurationError if the data directory had an authority, so that none is created.

    `known` must have been read before the database was: another process may just have created the
    authority.
    """
    if known is None:
        return
    check_not_forgotten(settings)
    move = (
        " To take it to PostgreSQL, type: sma move."
        if not (known.is_postgresql or settings.uses_sqlite)
        else ""
    )
    raise ConfigurationError(
        f"There is no authority in {describe_database(settings.resolved_database_url)}. But the"
        f" data directory {settings.data_dir} has {known}. Correct DATABASE_URL, or restore a"
        f" backup.{move} For a second authority, use another --data-dir. {_how_to_forget(settings)}"
    )


def describe_difference(settings: Settings, authority_id: str) -> str | None:
    """Return a sentence if the data directory had another authority than this one, else None."""
    known = find_known(settings)
    if known is None or known.authority_id == authority_id:
        return None
    return (
        f"This is authority {authority_id[:_SHOWN]} in"
        f" {describe_database(settings.resolved_database_url)}. But the data directory"
        f" {settings.data_dir} has {known}. Correct DATABASE_URL, or use another --data-dir."
    )


def check_same(settings: Settings, authority_id: str) -> None:
    """Raise ConfigurationError if the data directory had another authority than this one."""
    difference = describe_difference(settings, authority_id)
    if difference is not None:
        raise ConfigurationError(f"{difference} {_how_to_forget(settings)}")


def _how_to_forget(settings: Settings) -> str:
    return f"If that authority is of no use any more, remove {settings.data_dir / _FILE}"
