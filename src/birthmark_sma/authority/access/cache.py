"""The access keys in force, held in memory and read again as soon as one changes.

Every process of a server holds a ring of its own, and `key_watch` polls the database for it twice a
second, so that a revocation counts everywhere within a second. While the database is away the ring
stays as it is.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from sqlalchemy import Connection

from birthmark_sma.authority.access import store as access_key_store
from birthmark_sma.authority.access.store import AccessKey
from birthmark_sma.storage.engine import Database

PREFIX = "sma_"
ID_CHARACTERS = 10
SECRET_CHARACTERS = 52  # 32 random bytes in base32
_KEY_CHARACTERS = len(PREFIX) + ID_CHARACTERS + 1 + SECRET_CHARACTERS
_ID = slice(len(PREFIX), len(PREFIX) + ID_CHARACTERS)
_REMEMBERED_CERTIFICATES = 1_024

_Mapped = TypeVar("_Mapped", bytes, str)

_NO_DIGEST = bytes(32)  # the SHA-256 digest of nothing that anybody knows


def digest(presented: str) -> bytes:
    """Return what is stored of a key: its SHA-256, as nobody guesses 32 random bytes."""
    return hashlib.sha256(presented.encode()).digest()


@dataclass(frozen=True, slots=True)
class _CachedKey:
    """A key, and until when each of its secrets counts (seconds since 1970)."""

    key: AccessKey
    current: bytes
    previous: bytes
    previous_until: float


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """All keys as they were at one time; replaced as a whole.

    A certificate's key is the one not revoked, or else one that was: whose own key was revoked must
    not come in by the key of its issuer.
    """

    generation: int
    by_id: dict[str, _CachedKey]
    by_fingerprint: dict[bytes, AccessKey]
    by_issuer: dict[str, AccessKey]

    def changed(self, generation: int, keys: Iterable[AccessKey]) -> "_Snapshot":
        """Return what becomes of it with keys that were made or changed, the oldest first."""
        by_id = self.by_id.copy()
        by_fingerprint, by_issuer = self.by_fingerprint.copy(), self.by_issuer.copy()
        for key in keys:
            by_id[key.key_id] = _CachedKey(
                key,
                key.secret_digest or _NO_DIGEST,
                key.previous_digest or _NO_DIGEST,
                key.previous_until.timestamp() if key.previous_until else 0.0,
            )
            _map(by_fingerprint, key.certificate_fingerprint, key)
            _map(by_issuer, key.certificate_issuer, key)
        return _Snapshot(generation, by_id, by_fingerprint, by_issuer)


def _map(keys: dict[_Mapped, AccessKey], mapped: _Mapped | None, key: AccessKey) -> None:
    """Let a key stand for a certificate, unless it is revoked and another one stands for it."""
    if mapped is None:
        return
    standing = keys.get(mapped)
    if key.revoked_at is None or standing is None or standing.key_id == key.key_id:
        keys[mapped] = key


_EMPTY = _Snapshot(0, {}, {}, {})
_NOBODY = _CachedKey(
    AccessKey("", "", access_key_store.KeyScope.VALIDATE, datetime.min.replace(tzinfo=UTC)),
    _NO_DIGEST,
    _NO_DIGEST,
    0.0,
)


@lru_cache(_REMEMBERED_CERTIFICATES)
def _issuer_of(der: bytes) -> str | None:
    try:
        return x509.load_der_x509_certificate(der).issuer.rfc4514_string()
    except ValueError:  # OpenSSL takes some that are not quite X.509
        return None


@lru_cache(_REMEMBERED_CERTIFICATES)
def _is_issued_by(der: bytes, ca_der: bytes) -> bool:
    try:
        ca = x509.load_der_x509_certificate(ca_der)
        x509.load_der_x509_certificate(der).verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _own_clock() -> datetime:
    return datetime.now(UTC)


class AccessKeyCache:
    """Finds the key that somebody shows. A key that is found may still be revoked or expired."""

    def __init__(self, connection: Connection, now: Callable[[], datetime] = _own_clock) -> None:
        """Read all keys. `now` is the clock that says whether a key is in force."""
        self.now = now
        self._used: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        self._snapshot = _EMPTY
        self._read(connection, access_key_store.generation(connection))

    def poll(self, connection: Connection) -> None:
        """Read the keys that have changed, if any."""
        generation = access_key_store.generation(connection)
        if generation < self._snapshot.generation:  # the database is another one, from a backup
            self._read(connection, generation)
        elif generation > self._snapshot.generation:
            # The generation first: what changes after it is found again at the next look.
            changed = access_key_store.changed_since(connection, self._snapshot.generation)
            self._snapshot = self._snapshot.changed(generation, changed)

    def _read(self, connection: Connection, generation: int) -> None:
        """Read all keys. `generation` was read before."""
        self._snapshot = _EMPTY.changed(generation, access_key_store.all_keys(connection))

    def find_by_secret(self, presented: str) -> AccessKey | None:
        """Return the key that has this secret.

        A wrong secret of a known key takes the same steps as a key that nobody has, and comparing
        takes the same time wherever the first difference lies.
        """
        if len(presented) != _KEY_CHARACTERS or not presented.isascii():
            return None
        return self.find_by_digest(presented[_ID], digest(presented))

    def find_by_digest(self, key_id: str, shown: bytes) -> AccessKey | None:
        """Return the key of this id, where a secret that counts has this digest."""
        held = self._snapshot.by_id.get(key_id, _NOBODY)
        is_current = hmac.compare_digest(shown, held.current)
        is_previous = hmac.compare_digest(shown, held.previous)
        if is_current or (is_previous and self.now().timestamp() < held.previous_until):
            return held.key
        return None

    def find_by_certificate(self, fingerprint: bytes, der: bytes) -> AccessKey | None:
        """Return the key of a client certificate that TLS has verified: by itself, or its issuer.

        `fingerprint` is SHA-256 of `der`. The name of an issuer proves nothing where there are
        several CAs, as each may certify another one of any name: its signature does.
        """
        snapshot = self._snapshot
        key = snapshot.by_fingerprint.get(fingerprint)
        if key is None and snapshot.by_issuer:
            by_name = snapshot.by_issuer.get(_issuer_of(der) or "")
            if by_name is not None and _is_issued_by(der, by_name.certificate_issuer_der or b""):
                key = by_name
        return key

    def note_use(self, key: AccessKey) -> None:
        """Remember that a key was used just now; it is written down a little later."""
        self._used[key.key_id] = self.now().timestamp()

    def note_uses(self, database: Database) -> None:
        """Write down what was used since the last time. Raises DatabaseUnavailableError."""
        used = {i: at for i, at in self._used.copy().items() if self._noted.get(i) != at}
        if not used:
            return
        with database.write() as transaction:
            noted = access_key_store.note_last_use(
                transaction, {i: datetime.fromtimestamp(at, UTC) for i, at in used.items()}
            )
        self._noted |= {key_id: used[key_id] for key_id in noted}
