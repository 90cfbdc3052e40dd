"""Sign in to the dashboard, find the session of a request, and sign out.

Called by the session middleware and the sign-in page. A session is a row in the database that all
processes share. It survives a restart and a rotation of the key-encryption key; signing out deletes
it. A session must never outlast its access key: if that is revoked or expires, or if the grace
period of its old secret ends after a rotation, the session ends too.
"""

import hashlib
import hmac
import secrets
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from birthmark_sma.authority.access import session_store
from birthmark_sma.authority.access.cache import AccessKeyCache, digest
from birthmark_sma.authority.access.session_store import Session
from birthmark_sma.authority.access.store import AccessKey, KeyScope, at_least, in_words
from birthmark_sma.errors import (
    DatabaseUnavailableError,
    InsufficientScopeError,
    UnauthenticatedError,
)
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS

LONGEST = timedelta(hours=12)
"""A session ends this long after the sign-in."""
IDLE = timedelta(hours=1)
"""A session ends this long after the last action of a person."""
READERS = at_least(KeyScope.READ)
"""The scopes of the keys with which a browser may sign in. A session has the role of its key."""
TOKEN_CHARACTERS = 43  # 32 random bytes in base64url

_NOTE_AFTER = timedelta(minutes=1)  # at most one write a minute and session
_REMEMBERED = timedelta(days=30)
"""Rows of ended sessions are kept this long after the sign-in, so that a browser that sends an old
cookie is not counted as an attacker who guesses tokens."""


def sign_in(database: Database, key_cache: AccessKeyCache, presented: str) -> str:
    """Open a session with an access key and return the token for its cookie.

    Delete sessions that are older than 30 days. Raises UnauthenticatedError if the key is unknown,
    revoked or expired, InsufficientScopeError if its scope is below read, and
    DatabaseUnavailableError.
    """
    key = key_cache.find_by_secret(presented)
    if key is None:
        raise UnauthenticatedError("This access key is not known here.")
    now = database.clock.now()
    if key.revoked_at is not None:
        raise UnauthenticatedError("This access key was revoked.")
    if not key.is_good(now):
        raise UnauthenticatedError("This access key has expired.")
    if key.scope not in READERS:
        raise InsufficientScopeError(
            f"This access key has the scope {key.scope.value}. The dashboard shows devices and"
            f" validations, and needs a key of scope {in_words(READERS)}."
        )
    token = secrets.token_urlsafe(32)
    session = Session(digest(token), key.key_id, digest(presented), now, now)

    def open_session(transaction: Connection) -> None:
        session_store.forget_old_sessions(
            transaction, opened_before=database.clock.expired_before(_REMEMBERED)
        )
        session_store.add_session(transaction, session)

    database.transact(open_session, QUICK_SECONDS)
    key_cache.note_use(key)
    return token


def find_session(database: Database, token: str, *, by_person: bool) -> Session | None:
    """Return the session of a token, or None if it has ended.

    Raises UnauthenticatedError if no session of the last 30 days has this token: callers count that
    as a guess. Set `by_person` to False for requests that a page repeats by itself, so that they do
    not extend the session.
    """
    unknown = UnauthenticatedError("This session is not known here.")
    if len(token) != TOKEN_CHARACTERS:  # no query for what cannot be a token
        raise unknown
    now = database.clock.now()
    with database.read(QUICK_SECONDS) as connection:
        session = session_store.find_session(connection, digest(token))
    if session is None:
        raise unknown
    if not _is_valid(session, now):
        return None
    if by_person and now - session.seen_at > _NOTE_AFTER:
        # A full disk prevents this write. Operators need the dashboard most at that moment, so the
        # page is shown all the same.
        with suppress(DatabaseUnavailableError):
            database.transact(
                lambda transaction: session_store.note_seen(transaction, session.digest, now),
                QUICK_SECONDS,
            )
            return replace(session, seen_at=now)
    return session


def find_session_key(session: Session, key_cache: AccessKeyCache) -> AccessKey | None:
    """Return the access key of a session, or None if the secret that opened it is not valid any
    more. The key itself may be revoked or expired.
    """
    return key_cache.find_by_digest(session.key_id, session.secret_digest)


def sign_out(database: Database, token: str) -> None:
    """Delete the session of a token. Do nothing if there is none."""
    database.transact(
        lambda transaction: session_store.end_session(transaction, digest(token)), QUICK_SECONDS
    )


def form_token(token: str) -> str:
    """Return the CSRF token for the forms of a session: HMAC-SHA256 of "form", in hex."""
    return hmac.new(token.encode(), b"form", hashlib.sha256).hexdigest()


def is_form_token(shown: str, token: str) -> bool:
    """Return whether a CSRF token belongs to this session token. Compares in constant time."""
    return hmac.compare_digest(shown.encode(), form_token(token).encode())


def _is_valid(session: Session, now: datetime) -> bool:
    # abs(): a clock that was set back by more than the limit ends the session instead of extending
    # it.
    return abs(now - session.opened_at) < LONGEST and abs(now - session.seen_at) < IDLE
