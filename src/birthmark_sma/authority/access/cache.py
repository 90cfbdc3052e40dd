"""Cache of all access keys, for the authentication of requests without a database query.

Each process has its own cache. `background.key_reload` calls `poll` twice a second, so a revocation
takes effect in every process within a second. While the database is unavailable, the cache keeps
its last content. A found key may be revoked or expired: the caller of this module checks that.
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
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS

PREFIX = "sma_"
ID_CHARACTERS = 10
SECRET_CHARACTERS = 52  # 32 random bytes in base32
_KEY_CHARACTERS = len(PREFIX) + ID_CHARACTERS + 1 + SECRET_CHARACTERS
_ID = slice(len(PREFIX), len(PREFIX) + ID_CHARACTERS)
# Cached results for each of the two functions that parse client certificates.
_REMEMBERED_CERTIFICATES = 1_024

_Mapped = TypeVar("_Mapped", bytes, str)

_NO_DIGEST = bytes(32)  # stands for "no secret": no input with this SHA-256 digest is known


def digest(presented: str) -> bytes:
    """Return the SHA-256 digest of an access key, which is what the database stores.

    A slow password hash is not needed, because the secret has 32 random bytes.
    """
    return hashlib.sha256(presented.encode()).digest()


@dataclass(frozen=True, slots=True)
class _CachedKey:
    """An access key with the digests of its current and previous secret.

    `previous_until` is the Unix time, in seconds, at which the previous secret expires.
    """

    key: AccessKey
    current: bytes
    previous: bytes
    previous_until: float


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """All keys as of one generation.

    Never changed in place: `poll` replaces the snapshot as a whole, so readers need no lock.
    `by_fingerprint` and `by_issuer` prefer a key that is not revoked, but keep a revoked key if
    there is no other. Otherwise a certificate whose own key was revoked would pass with the key of
    its issuer.
    """

    generation: int
    by_id: dict[str, _CachedKey]
    by_fingerprint: dict[bytes, AccessKey]
    by_issuer: dict[str, AccessKey]

    def changed(self, generation: int, keys: Iterable[AccessKey]) -> "_Snapshot":
        """Return a new snapshot of this generation with these new or changed keys, oldest first."""
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
    """Map a certificate to a key, unless this key is revoked and another key is mapped already."""
    if mapped is None:
        return
    standing = keys.get(mapped)
    if key.revoked_at is None or standing is None or standing.key_id == key.key_id:
        keys[mapped] = key


_EMPTY = _Snapshot(0, {}, {}, {})
# An unknown key id is compared with this key, so that it takes the same time as a known one.
_NOBODY = _CachedKey(
    AccessKey("", "", access_key_store.KeyScope.VALIDATE, datetime.min.replace(tzinfo=UTC)),
    _NO_DIGEST,
    _NO_DIGEST,
    0.0,
)


@lru_cache(_REMEMBERED_CERTIFICATES)
def _read_issuer(der: bytes) -> str | None:
    try:
        return x509.load_der_x509_certificate(der).issuer.rfc4514_string()
    except ValueError:  # OpenSSL accepts some certificates that are not valid X.509
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
    """Finds the access key that a request presents, by its secret or its client certificate.

    The key that it returns may be revoked or expired. Safe to use from any thread.
    """

    def __init__(self, connection: Connection, now: Callable[[], datetime] = _own_clock) -> None:
        """Read all keys. `now` returns the time that expiries are compared with."""
        self.now = now
        # Key id to Unix time: the last use, and the last use that the database has.
        self._used: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        self._snapshot = _EMPTY
        self._read(connection, access_key_store.generation(connection))

    def poll(self, connection: Connection) -> None:
        """Read the keys that changed since the last call, if any did."""
        generation = access_key_store.generation(connection)
        if generation < self._snapshot.generation:  # the database was restored from a backup
            self._read(connection, generation)
        elif generation > self._snapshot.generation:
            # The generation was read first. A key that changes after it is read again by the next
            # poll; in the other order that change would be lost.
            changed = access_key_store.changed_since(connection, self._snapshot.generation)
            self._snapshot = self._snapshot.changed(generation, changed)

    def _read(self, connection: Connection, generation: int) -> None:
        """Read all keys. `generation` must have been read before the keys, as in `poll`."""
        self._snapshot = _EMPTY.changed(generation, access_key_store.all_keys(connection))

    def find_by_secret(self, presented: str) -> AccessKey | None:
        """Return the key that has this secret, or None.

        The time does not tell whether the key id exists: an unknown id takes the same steps as a
        wrong secret. Digests are compared in constant time.
        """
        if len(presented) != _KEY_CHARACTERS or not presented.isascii():
            return None
        return self.find_by_digest(presented[_ID], digest(presented))

    def find_by_digest(self, key_id: str, shown: bytes) -> AccessKey | None:
        """Return the key of this id if its current or previous secret has this digest, or None.

        The previous secret is accepted until `previous_until`.
        """
        held = self._snapshot.by_id.get(key_id, _NOBODY)
        # Compare with both secrets, so that every request takes the same steps.
        is_current = hmac.compare_digest(shown, held.current)
        is_previous = hmac.compare_digest(shown, held.previous)
        if is_current or (is_previous and self.now().timestamp() < held.previous_until):
            return held.key
        return None

    def find_by_certificate(self, fingerprint: bytes, der: bytes) -> AccessKey | None:
        """Return the key of a client certificate that TLS has verified, or None.

        Find it by `fingerprint`, which is the SHA-256 of `der`, or else by the issuer. An issuer
        must match by name and by signature: if TLS trusts several CAs, each of them can create
        another CA with the same name.
        """
        snapshot = self._snapshot
        key = snapshot.by_fingerprint.get(fingerprint)
        if key is None and snapshot.by_issuer:
            by_name = snapshot.by_issuer.get(_read_issuer(der) or "")
            if by_name is not None and _is_issued_by(der, by_name.certificate_issuer_der or b""):
                key = by_name
        return key

    def note_use(self, key: AccessKey) -> None:
        """Remember in memory that a key was used now. `note_uses` writes it to the database."""
        self._used[key.key_id] = self.now().timestamp()

    def note_uses(self, database: Database) -> None:
        """Write the last uses since the last call to the database.

        Raises DatabaseUnavailableError.
        """
        # `note_use` runs in other threads: iterate over a copy.
        used = {i: at for i, at in self._used.copy().items() if self._noted.get(i) != at}
        if not used:
            return
        times = {i: datetime.fromtimestamp(at, UTC) for i, at in used.items()}
        noted = database.transact(
            lambda transaction: access_key_store.note_last_use(transaction, times), QUICK_SECONDS
        )
        # Rows that another process had locked are not in `noted`: the next call retries them.
        self._noted |= {key_id: used[key_id] for key_id in noted}
