"""Sign in to the dashboard, stay signed in for a while, and sign out.

A session is a row in the database, which all processes share: it outlives a killed server and a
rotation of the key-encryption key, and ends for good where somebody signs out. It is worth no more
than the secret that opened it: where that is revoked, rotated or expires, the session ends too.
"""

import hashlib
import hmac
import secrets
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from birthmark_sma.authority.access import session_store
from birthmark_sma.authority.access.cache import AccessKeyCache, digest
from birthmark_sma.authority.access.session_store import Session
from birthmark_sma.authority.access.store import AccessKey, KeyScope
from birthmark_sma.errors import (
    DatabaseUnavailableError,
    InsufficientScopeError,
    UnauthenticatedError,
)
from birthmark_sma.storage.engine import Database

LONGEST = timedelta(hours=12)
IDLE = timedelta(hours=1)
TOKEN_CHARACTERS = 43  # 32 random bytes in base64url

_NOTE_AFTER = timedelta(minutes=1)
_REMEMBERED = timedelta(days=30)
"""How long the row of a session stays that is over: who shows its cookie is not guessing."""


def sign_in(database: Database, key_cache: AccessKeyCache, presented: str) -> str:
    """Open a session with an admin key; return the token that its cookie holds.

    Raises UnauthenticatedError, or InsufficientScopeError where the key is good for something else.
    """
    key = key_cache.find_by_secret(presented)
    if key is None:
        raise UnauthenticatedError("This access key is not known here.")
    now = database.clock.now()
    if key.revoked_at is not None:
        raise UnauthenticatedError("This access key was revoked.")
    if not key.is_good(now):
        raise UnauthenticatedError("This access key has expired.")
    if key.scope is not KeyScope.ADMIN:
        raise InsufficientScopeError(
            f"This access key is good for {key.scope.value}; the dashboard wants one for admin."
        )
    token = secrets.token_urlsafe(32)
    with database.write() as transaction:
        session_store.forget_old_sessions(
            transaction, opened_before=database.clock.expired_before(_REMEMBERED)
        )
        session_store.add_session(
            transaction, Session(_digest(token), key.key_id, digest(presented), now, now)
        )
    key_cache.note_use(key)
    return token


def find_session(database: Database, token: str, *, by_person: bool) -> Session | None:
    """Return the session of a token, or None where it is over.

    Raises UnauthenticatedError where nobody was given such a token lately: it was guessed. What a
    page asks by itself, again and again, is not `by_person`, and keeps no session alive.
    """
    unknown = UnauthenticatedError("This session is not known here.")
    if len(token) != TOKEN_CHARACTERS:
        raise unknown
    now = database.clock.now()
    with database.read() as connection:
        session = session_store.find_session(connection, _digest(token))
    if session is None:
        raise unknown
    if not _lasts(session, now):
        return None
    if by_person and now - session.seen_at > _NOTE_AFTER:
        # On a full disk nothing can be noted, and that is when people most need to look.
        with suppress(DatabaseUnavailableError), database.write() as transaction:
            session_store.note_seen(transaction, session.digest, now)
            return replace(session, seen_at=now)
    return session


def find_session_key(session: Session, key_cache: AccessKeyCache) -> AccessKey | None:
    """Return the key that a session stands for, while the secret that opened it still counts."""
    return key_cache.find_by_digest(session.key_id, session.secret_digest)


def sign_out(database: Database, token: str) -> None:
    """End a session; harmless where there is none."""
    with database.write() as transaction:
        session_store.end_session(transaction, _digest(token))


def form_token(token: str) -> str:
    """Return what a form of a signed-in page holds, which no page of another site can know."""
    return hmac.new(token.encode(), b"form", hashlib.sha256).hexdigest()


def is_form_token(shown: str, token: str) -> bool:
    """Say whether a form came from a page that was made for this token."""
    return hmac.compare_digest(shown.encode(), form_token(token).encode())


def _lasts(session: Session, now: datetime) -> bool:
    # A clock that was set back makes no session younger than it can be.
    return abs(now - session.opened_at) < LONGEST and abs(now - session.seen_at) < IDLE


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
