"""Sessions: browsers that are signed in to the dashboard, with an access key each."""

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from birthmark_sma.storage.schema import dashboard_sessions

_columns = dashboard_sessions.c


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in.

    `digest` is SHA-256 of what its cookie holds, `secret_digest` that of the secret it came with,
    as the access key has it; `seen_at`, when a person last did something, to a minute.
    """

    digest: bytes = field(repr=False)
    key_id: str
    secret_digest: bytes = field(repr=False)
    opened_at: datetime
    seen_at: datetime


_ALL = [_columns[each.name] for each in fields(Session)]


def add_session(transaction: Connection, session: Session) -> None:
    """Store a new session."""
    transaction.execute(insert(dashboard_sessions).values(**asdict(session)))


def find_session(connection: Connection, digest: bytes) -> Session | None:
    """Return the session of this digest, however old it is."""
    row = connection.execute(select(*_ALL).where(_columns.digest == digest)).one_or_none()
    return None if row is None else Session(*row)


def note_seen(transaction: Connection, digest: bytes, now: datetime) -> None:
    """Write down that a person has just used a session."""
    transaction.execute(
        update(dashboard_sessions).where(_columns.digest == digest).values(seen_at=now)
    )


def end_session(transaction: Connection, digest: bytes) -> None:
    """Forget a session."""
    transaction.execute(delete(dashboard_sessions).where(_columns.digest == digest))


def forget_old_sessions(transaction: Connection, *, opened_before: datetime) -> None:
    """Forget the sessions that were opened before this time."""
    transaction.execute(delete(dashboard_sessions).where(_columns.opened_at < opened_before))
