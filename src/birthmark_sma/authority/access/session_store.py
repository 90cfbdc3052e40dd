"""SQL for dashboard sessions: add, find, update and delete rows of `dashboard_sessions`.

Called by `sessions`, which decides whether a session is still valid. This module must never see a
session token: it gets the SHA-256 digest of it.
"""

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from birthmark_sma.storage.schema.access import dashboard_sessions

_columns = dashboard_sessions.c


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that is signed in.

    `digest` is the SHA-256 of the token in its cookie. `secret_digest` is the SHA-256 of the access
    key that opened the session. `seen_at` is the time of the last action of a person, to a minute.
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
    """Return the session of this token digest, or None. It may be expired."""
    row = connection.execute(select(*_ALL).where(_columns.digest == digest)).one_or_none()
    return None if row is None else Session(*row)


def note_seen(transaction: Connection, digest: bytes, now: datetime) -> None:
    """Set the time of the last action of a person in a session."""
    transaction.execute(
        update(dashboard_sessions).where(_columns.digest == digest).values(seen_at=now)
    )


def end_session(transaction: Connection, digest: bytes) -> None:
    """Delete a session, if there is one of this token digest."""
    transaction.execute(delete(dashboard_sessions).where(_columns.digest == digest))


def forget_old_sessions(transaction: Connection, *, opened_before: datetime) -> None:
    """Delete the sessions that were opened before this time."""
    transaction.execute(delete(dashboard_sessions).where(_columns.opened_at < opened_before))
