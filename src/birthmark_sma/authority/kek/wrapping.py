"""Wrap and unwrap secrets with the key-encryption key (KEK), and follow its rotations.

The KEK wraps the master keys of key tables, the CA's key, the key for NUC hashes and stored first
answers. Each wrapped value is bound to its place (as the additional data of GCM), so that a row of
the database cannot be replaced by another one. There is one KEK, except during a rotation: see
docs/adr/0008. The bytes of a KEK must never leave this module.
"""

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Connection

from birthmark_sma.authority.kek import store as kek_store
from birthmark_sma.authority.kek.sources import KEK_BYTES, SALT_BYTES, KekSecret, KekSource
from birthmark_sma.authority.kek.store import KekRecord
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    BirthmarkError,
    ConfigurationError,
    KeyEncryptionKeyChangedError,
    NotInitialisedError,
    WrongSecretError,
)
from birthmark_sma.storage.engine import Database

_NONCE_BYTES = 12
_NUC_HASH_KEY_PLACE = b"nuc hash key"
_ASK_AGAIN_SECONDS = 30.0  # at least between two attempts to obtain the secret again

_log = logging.getLogger(__name__)


class KeyEncryptionKey:
    """An AES-256 key that wraps other secrets (AES-256-GCM, NIST SP 800-38D).

    Its repr must not show the key.
    """

    __slots__ = ("_aead", "_key", "kek_id")

    def __init__(self, kek_id: int, key: bytes) -> None:
        self.kek_id = kek_id
        self._key = key
        self._aead = AESGCM(key)

    def wrap(self, plaintext: bytes, place: bytes) -> bytes:
        """Encrypt a secret for a place; return nonce (12 bytes), ciphertext and tag (16 bytes)."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plaintext, place)

    def unwrap(self, wrapped: bytes, place: bytes) -> bytes:
        """Decrypt a value from `wrap`. Raises WrongSecretError under another key or place."""
        nonce, ciphertext = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return self._aead.decrypt(nonce, ciphertext, place)
        except (InvalidTag, ValueError):
            raise WrongSecretError(
                "This authority's secrets are wrapped under another key-encryption key. Set the"
                " CA_PASSWORD, SMA_KEK_FILE or SMA_KEK_COMMAND that is in force."
            ) from None

    def wrap_key(self, other: "KeyEncryptionKey") -> bytes:
        """Wrap another key-encryption key, so that this key suffices to obtain the other."""
        return self.wrap(other._key, _bridge_place(other.kek_id))

    def unwrap_key(self, wrapped: bytes, kek_id: int) -> "KeyEncryptionKey":
        """Return the key-encryption key from a value of `wrap_key`. Raises WrongSecretError."""
        return KeyEncryptionKey(kek_id, self.unwrap(wrapped, _bridge_place(kek_id)))

    def same_as(self, other: "KeyEncryptionKey") -> bool:
        """Return whether both are the same key, whatever their ids. Compares in constant time."""
        return hmac.compare_digest(self._key, other._key)

    def derive_nuc_hash_key(self) -> bytes:
        """Return the 32-byte key for NUC hashes (HKDF-SHA256, RFC 5869).

        Call it once, when an authority is created; later the stored key is unwrapped (ADR 0005).
        """
        return HKDF(SHA256(), KEK_BYTES, salt=None, info=_NUC_HASH_KEY_PLACE).derive(self._key)


class KeyEncryptionKeys:
    """The key-encryption keys that this process knows: the newest, and those before rotations.

    Keys are added when a rotation is detected, and never removed. Safe to use from any thread.
    """

    __slots__ = ("_asked_at", "_given", "_keys", "_lock", "_newest")

    def __init__(self, keys: Sequence[KeyEncryptionKey], given: KekSecret) -> None:
        self._keys = {key.kek_id: key for key in keys}
        self._newest = max(self._keys)
        self._given = given
        self._asked_at = -_ASK_AGAIN_SECONDS
        # Guards updates of `_keys`, `_newest` and `_asked_at`. Keys are never removed, so a reader
        # that looks up one key needs no lock.
        self._lock = threading.Lock()

    @property
    def newest(self) -> KeyEncryptionKey:
        """The newest key that this process knows. Use `lock_newest` to wrap while servers run."""
        return self._keys[self._newest]

    def lock_newest(self, transaction: Connection) -> KeyEncryptionKey:
        """Return the newest key in the database, and lock its record until the transaction ends.

        Wrap new values under this key. Raises KeyEncryptionKeyChangedError if this process could
        not follow a rotation.
        """
        return self._known(transaction, kek_store.lock_newest_kek(transaction))

    def unwrap(self, connection: Connection, wrapped: bytes, kek_id: int, place: bytes) -> bytes:
        """Decrypt a value that key `kek_id` wrapped for this place.

        Raises WrongSecretError, and KeyEncryptionKeyChangedError as `lock_newest`.
        """
        return self._known(connection, kek_id).unwrap(wrapped, place)

    def poll(self, connection: Connection) -> None:
        """Detect a rotation and obtain the new key.

        Call it several times within `rotation.FOLLOWING_SECONDS`, the shortest rotation.

        During a rotation the old key unwraps the new one. If this process missed the rotation, it
        obtains the secret again, at most every 30 seconds: the file or the command may yield the
        new key. That runs in a thread, because a command may take 30 seconds and the caller polls
        other things as well.
        """
        newest = kek_store.newest_kek_id(connection)
        if newest is None or newest == self._newest:
            return
        if self.follow(connection) == newest:
            self._log_rotation()
        elif self._may_ask_again():
            # Read the records here: the thread must not use the caller's connection.
            records = kek_store.list_keks(connection)
            threading.Thread(
                target=self._ask_again, args=(records,), name="key-asking", daemon=True
            ).start()

    def follow(self, connection: Connection) -> int:
        """Unwrap all keys that the known keys lead to; return the id of the newest known key."""
        return self._learn(_reached(list(self._keys.values()), kek_store.list_keks(connection)))

    def _known(self, connection: Connection, kek_id: int) -> KeyEncryptionKey:
        if kek_id not in self._keys:
            self.follow(connection)
        try:
            return self._keys[kek_id]
        except KeyError:
            raise KeyEncryptionKeyChangedError from None

    def _learn(self, keys: Sequence[KeyEncryptionKey]) -> int:
        with self._lock:
            self._keys |= {key.kek_id: key for key in keys}
            self._newest = max(self._keys)
            return self._newest

    def _log_rotation(self) -> None:
        _log.warning("the key-encryption key was rotated: key %d is in force", self._newest)

    def _may_ask_again(self) -> bool:
        with self._lock:
            now = time.monotonic()
            due = now - self._asked_at >= _ASK_AGAIN_SECONDS
            if due:
                self._asked_at = now
        return due

    def _ask_again(self, records: Sequence[KekRecord]) -> None:
        try:
            self._learn(open_keys(records, self._given))
            self._log_rotation()
        except BirthmarkError:
            _log.error(
                "the key-encryption key was rotated, and this server cannot obtain the new one."
                " Restart it with the new secret. Until then, devices that send an Idempotency-Key"
                " get 503"
            )


class NucHashIndex:
    """Maps a NUC hash to the value that is stored and looked up: HMAC-SHA256 under a secret key."""

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        self._keyed = HMAC(key, SHA256())

    def of(self, nuc_hash: bytes) -> bytes:
        """Return the 32-byte HMAC (RFC 2104) of a NUC hash."""
        # Unlike the standard library's hmac, this one does not release the interpreter's lock. In a
        # busy server, releasing it for half a microsecond would cost more than the digest.
        keyed = self._keyed.copy()
        keyed.update(nuc_hash)
        return keyed.finalize()


@dataclass(frozen=True, slots=True)
class OpenedSecrets:
    """The opened secrets of an authority, after a proof that they are the right ones."""

    keks: KeyEncryptionKeys = field(repr=False)
    nuc_hash_index: NucHashIndex = field(repr=False)


def create_secrets(given: KekSecret, now: datetime) -> tuple[KekRecord, OpenedSecrets]:
    """Create the key-encryption key of a new authority, and the record that proves it later.

    Raises ConfigurationError or PrivateFileError if the secret cannot be obtained.
    """
    kek, record = _new_kek(1, given, now)
    nuc_hash_key = kek.derive_nuc_hash_key()
    proof = kek.wrap(nuc_hash_key, _NUC_HASH_KEY_PLACE)
    return (
        replace(record, wrapped_nuc_hash_key=proof),
        OpenedSecrets(KeyEncryptionKeys([kek], given), NucHashIndex(nuc_hash_key)),
    )


def create_successor_key(
    predecessor: KeyEncryptionKey, record: KekRecord, given: KekSecret, now: datetime
) -> tuple[KeyEncryptionKey, KekRecord]:
    """Create the key that follows the newest one, and its record, with the old key wrapped in it.

    `record` is the newest record. Raises WrongSecretError if `predecessor` is not its key, and
    ConfigurationError or PrivateFileError if the new secret cannot be obtained.
    """
    kek, successor = _new_kek(record.kek_id + 1, given, now)
    nuc_hash_key = predecessor.unwrap(record.wrapped_nuc_hash_key, _NUC_HASH_KEY_PLACE)
    return kek, replace(
        successor,
        wrapped_nuc_hash_key=kek.wrap(nuc_hash_key, _NUC_HASH_KEY_PLACE),
        wrapped_predecessor=kek.wrap_key(predecessor),
    )


def open_stored_secrets(database: Database, settings: Settings) -> OpenedSecrets:
    """Open the secrets of an authority with the configured secret, which proves it right.

    Raises NotInitialisedError, WrongSecretError or ConfigurationError.
    """
    with database.read() as connection:
        records = kek_store.list_keks(connection)
    if not records:
        raise NotInitialisedError
    return open_secrets(records, KekSecret.of(settings))


def open_secrets(records: Sequence[KekRecord], given: KekSecret) -> OpenedSecrets:
    """Obtain the key-encryption key of an existing authority, and prove that it is the right one.

    During a rotation the secret of any record opens all keys. Raises WrongSecretError if it is the
    secret of none, ConfigurationError if its source is not configured, and PrivateFileError.
    """
    keys = open_keys(records, given)
    newest = max(keys, key=lambda key: key.kek_id)
    proof = records[-1].wrapped_nuc_hash_key
    nuc_hash_key = newest.unwrap(proof, _NUC_HASH_KEY_PLACE)
    return OpenedSecrets(KeyEncryptionKeys(keys, given), NucHashIndex(nuc_hash_key))


def open_keys(records: Sequence[KekRecord], given: KekSecret) -> list[KeyEncryptionKey]:
    """Return the keys that the given secret leads to. Raises as `open_secrets`.

    Try the newest record first. If none can be opened, prefer a WrongSecretError to a
    ConfigurationError.
    """
    refusals: list[BirthmarkError] = []
    for record in reversed(records):
        try:
            found = open_record(record, given)
        except (WrongSecretError, ConfigurationError) as refusal:
            refusals.append(refusal)
        else:
            return _reached([found], records)
    wrong = [refusal for refusal in refusals if isinstance(refusal, WrongSecretError)]
    raise (wrong or refusals)[0]


def open_record(record: KekRecord, given: KekSecret) -> KeyEncryptionKey:
    """Obtain the key of one record from the secret, and prove it. Raises as `open_secrets`."""
    kek = KeyEncryptionKey(record.kek_id, given.obtain(record.source, record.salt))
    kek.unwrap(record.wrapped_nuc_hash_key, _NUC_HASH_KEY_PLACE)
    return kek


def _new_kek(kek_id: int, given: KekSecret, now: datetime) -> tuple[KeyEncryptionKey, KekRecord]:
    source, salt = given.source, secrets.token_bytes(SALT_BYTES)
    kek = KeyEncryptionKey(kek_id, given.obtain(source, salt))
    # A command that generates a key each time would make everything unreadable at the next start.
    if source is KekSource.COMMAND and not kek.same_as(
        KeyEncryptionKey(kek_id, given.obtain(source, salt))
    ):
        raise ConfigurationError(
            "SMA_KEK_COMMAND wrote another key the second time. It must always write the same key."
        )
    return kek, KekRecord(kek_id, source.value, salt, b"", now)


def _reached(
    known: Sequence[KeyEncryptionKey], records: Sequence[KekRecord]
) -> list[KeyEncryptionKey]:
    """Return all keys that the known ones lead to, by the wrapped keys in the records.

    Go forwards from older to newer keys, and then backwards. Raises WrongSecretError.
    """
    keys = {key.kek_id: key for key in known}

    def step(start: KekRecord, end: KekRecord, bridge: Callable[[KekRecord], bytes | None]) -> None:
        wrapped = bridge(start)
        if start.kek_id in keys and end.kek_id not in keys and wrapped is not None:
            keys[end.kek_id] = keys[start.kek_id].unwrap_key(wrapped, end.kek_id)

    # Forwards first: then the newest key is known, and from it the way back reaches all others.
    for older, newer in pairwise(records):
        step(older, newer, lambda record: record.wrapped_successor)
    for newer, older in pairwise(reversed(records)):
        step(newer, older, lambda record: record.wrapped_predecessor)
    return list(keys.values())


def _bridge_place(kek_id: int) -> bytes:
    return b"key-encryption key %d" % kek_id
