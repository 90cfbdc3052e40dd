"""Map errors of the database drivers to DatabaseUnavailableError.

`storage.engine` calls `translate` for each error of SQLAlchemy. The error code decides: SQLSTATE,
or the name of SQLite's result code. The driver's message is never passed on, because it may quote
values. Errors that are bugs of this program are not mapped, nor errors that a caller handles, such
as a violated UNIQUE constraint that decides a race.
"""

from typing import NamedTuple

from sqlalchemy import exc

from birthmark_sma.errors import DatabaseFault, DatabaseUnavailableError
from birthmark_sma.storage.outages.deadlines import OverdueError, UnreplicatedError


class _Kind(NamedTuple):
    """One kind of fault.

    `fault` is its label in metrics, `told` the message for callers, `advice` the one for operators.
    """

    fault: DatabaseFault
    told: str
    advice: str


_AWAY = _Kind(
    DatabaseFault.AWAY,
    "The database does not answer",
    "check that it runs, and the address, user, password and database's name in DATABASE_URL",
)
_OVERDUE = _AWAY._replace(
    advice="it did not answer a call in time, and the connection was closed: is it frozen, cut off,"
    " or very slow?"
)
_UNREPLICATED = _AWAY._replace(
    told="The database's standby does not answer",
    advice="somebody cancelled a commit that waited for a synchronous standby: look at"
    " synchronous_standby_names and pg_stat_replication",
)
_BUSY = _Kind(DatabaseFault.BUSY, "The database is too busy for this transaction; try again", "")
_POOLED = _BUSY._replace(
    advice="a connection pooler in transaction mode is in between: docs/set-up/postgresql.md"
)
_LOCKED = _Kind(DatabaseFault.LOCKED, "Another program has locked the database", "")
_FULL = _Kind(DatabaseFault.FULL, "The database has no room left", "")
_READ_ONLY = _Kind(DatabaseFault.READ_ONLY, "The database is read-only", "")
_REFUSED = _Kind(
    DatabaseFault.REFUSED,
    "The database refuses the authority a permission that it needs",
    "sma doctor says what to grant, and before sma init it is GRANT ALL ON SCHEMA public",
)
_SCHEMA = _Kind(
    DatabaseFault.SCHEMA,
    "The database lacks a table, column or function of the authority",
    "sma doctor says what is missing: restore it from a backup, and check search_path and the"
    " database's name in DATABASE_URL",
)
_NO_PARTITION = _SCHEMA._replace(
    told="A table of the database has no partition for a new row",
    advice="somebody detached or dropped partitions of the audit log, also"
    " validation_history_unforeseen, which takes what no other takes: attach them again",
)
_DAMAGED = _Kind(
    DatabaseFault.DAMAGED,
    "The database file is damaged, or is no database: restore it from a backup",
    "",
)
_FAILED = _Kind(
    DatabaseFault.FAILED, "The database failed", "the database's own log has the reason"
)

# Keys are prefixes of error codes. The longest matching prefix decides.
_KINDS = {
    # SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
    "08": _AWAY._replace(advice="the connection to it was lost: look at the network, and its log"),
    "2200H": _Kind(
        DatabaseFault.SEQUENCE,
        "A sequence of the database is at its end",
        "give the sequence another maximum: ALTER SEQUENCE ... AS bigint NO MAXVALUE",
    ),
    # A connection pooler gave this client another server connection: `storage.postgresql_driver`.
    "26000": _POOLED,
    "42P05": _POOLED,
    "25P03": _AWAY._replace(
        advice="it ended a transaction in which this program paused: is this machine overloaded, or"
        " was the network cut?"
    ),
    "25006": _READ_ONLY._replace(
        advice="it is a standby, or default_transaction_read_only is on: let DATABASE_URL lead to"
        " the primary, with target_session_attrs=read-write"
    ),
    "28": _AWAY,
    "3D000": _AWAY,
    "3F": _SCHEMA,
    "40": _BUSY._replace(
        advice="transactions conflict or deadlock, again and again: end what other programs hold"
    ),
    "42501": _REFUSED,
    "42703": _SCHEMA,
    "42704": _SCHEMA,
    "42883": _SCHEMA,
    "42P01": _SCHEMA,
    "53": _BUSY._replace(advice="it is short of resources: its own log says of which"),
    "53100": _FULL._replace(advice="its disk is full"),
    "53200": _BUSY._replace(advice="it is out of memory"),
    "53300": _Kind(
        DatabaseFault.CONNECTIONS,
        "The database has too many connections",
        "it has too many connections already: raise max_connections, or run fewer workers",
    ),
    "55": _LOCKED,
    "55P03": _LOCKED._replace(
        advice="a long query or transaction holds what must change; try again when it has ended"
    ),
    "57": _AWAY._replace(advice="it is shutting down, starting, or an administrator cut it off"),
    "57P01": _AWAY._replace(
        advice="an administrator ended the connection: it shuts down, or hands over to another node"
    ),
    "57P02": _AWAY._replace(
        advice="one of its processes crashed, and it starts again: its own log says why"
    ),
    "57P03": _AWAY._replace(
        advice="it is starting, recovering or shutting down: it accepts no connection yet"
    ),
    "57014": _BUSY._replace(
        advice="a statement was cancelled: look at statement_timeout, and for what slows it down"
    ),
    "58": _FAILED._replace(advice="its disk or file system fails: its own log says how"),
    "58030": _FAILED._replace(advice="its disk fails, or is full: its own log says how"),
    "XX": _FAILED,
    "XX001": _DAMAGED._replace(told="The database is damaged: restore it from a backup"),
    "XX002": _DAMAGED._replace(told="An index of the database is damaged: have it made again"),
    # SQLite: https://www.sqlite.org/rescode.html
    "SQLITE_BUSY": _LOCKED._replace(advice="another program has locked the file for long"),
    "SQLITE_LOCKED": _LOCKED,
    "SQLITE_CANTOPEN": _AWAY._replace(
        advice="the file cannot be opened: is its directory there, and yours?"
    ),
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_ERROR": _SCHEMA,
    "SQLITE_FULL": _FULL._replace(advice="the disk is full"),
    "SQLITE_IOERR": _FAILED._replace(
        told="The database file cannot be read or written", advice="the disk fails, or is full"
    ),
    "SQLITE_NOTADB": _DAMAGED,
    "SQLITE_PERM": _REFUSED._replace(advice="the file cannot be opened by this user"),
    "SQLITE_READONLY": _READ_ONLY._replace(advice="the file, or its directory, cannot be written"),
    "SQLITE_SCHEMA": _SCHEMA,
}
_LONGEST_FIRST = sorted(_KINDS, key=len, reverse=True)

# SQLAlchemy's errors that mean a fault of the database if the code is not in the table above.
_OUT_OF_ORDER = (
    exc.OperationalError,  # connection lost, refused, disk full, deadlock, locked for too long
    exc.InterfaceError,  # the connection was closed by the server or the network
    exc.InternalError,  # among others: a server that became a read-only standby
    exc.TimeoutError,  # the connection pool has no free connection
)


# Nothing was done, and another attempt may succeed: `storage.outages.retries`. Connections are free
# again within a moment when a pool of another program shrinks, or a server restarts.
_TRY_AGAIN = ("40001", "40P01", "26000", "42P05", "53300")

_CHECK_VIOLATION = "23514"
_UNIQUE_VIOLATION = "23505"
_NEXT_NUMBERS = ("audit_batches_pkey", "audit_checkpoints_pkey")
"""Keys with a number that follows the last one, which a transaction reads under a lock. At
REPEATABLE READ its snapshot can be older than its lock. Then another one has taken the number."""

# When the server refuses a connection, libpq does not pass on the SQLSTATE. So these cases are
# recognised by the text of the message; in other languages they count as away.
_CODES_BY_WORDS = {
    "too many connections": "53300",
    "too many clients": "53300",
    "remaining connection slots": "53300",
    "session is read-only": "25006",
    "server is in hot standby mode": "25006",
    "the database system is starting up": "57P03",
    "the database system is not yet accepting connections": "57P03",
    "the database system is in recovery mode": "57P03",
    "the database system is shutting down": "57P03",
}


def translate(error: exc.SQLAlchemyError) -> DatabaseUnavailableError | None:
    """Return the DatabaseUnavailableError to raise instead, or None if the error is another kind.

    The result is new for each call. It contains no text of the driver.
    """
    cause = getattr(error, "orig", None)
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    if code is None:
        said = str(cause)
        code = next((code for words, code in _CODES_BY_WORDS.items() if words in said), None)
    found = next((each for each in _LONGEST_FIRST if code and code.startswith(each)), None)
    takes_next_number = code == _UNIQUE_VIOLATION and _constraint_of(cause) in _NEXT_NUMBERS
    # Any other IntegrityError is a race that callers handle, whatever its code is.
    if takes_next_number:
        kind = _KINDS["40"]
    elif found is not None and not isinstance(error, exc.IntegrityError):
        kind = _KINDS[found]
    elif code == _CHECK_VIOLATION and _lacks_partition(cause):
        kind = _NO_PARTITION
    elif isinstance(cause, OverdueError):
        kind = _OVERDUE
    elif isinstance(cause, UnreplicatedError):
        kind = _UNREPLICATED
    elif isinstance(error, _OUT_OF_ORDER):
        kind = _AWAY if code is None else _FAILED
    elif type(error) is exc.DatabaseError:  # its other subclasses are bugs of this program
        kind = _FAILED if code is None or not code.startswith("SQLITE") else _DAMAGED
    else:
        return None
    unavailable = DatabaseUnavailableError(kind.told, kind.advice, kind.fault)
    unavailable.try_again = code in _TRY_AGAIN or takes_next_number
    return unavailable


def _lacks_partition(cause: object) -> bool:
    """Return whether a check violation names a table, but no constraint.

    PostgreSQL says so if a partitioned table has no partition for a row. A violated constraint has
    a name, and is a bug of this program.
    """
    said = getattr(cause, "diag", None)
    return bool(getattr(said, "table_name", None)) and not _constraint_of(cause)


def _constraint_of(cause: object) -> str | None:
    """Return the name of the constraint that PostgreSQL says is violated."""
    return getattr(getattr(cause, "diag", None), "constraint_name", None)
