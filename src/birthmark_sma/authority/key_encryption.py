"""The key-encryption key: it wraps the master keys, and the key that NUC hashes are stored under.

It is derived from `CA_PASSWORD` by scrypt (RFC 7914), or read from `SMA_KEK_FILE`. Every wrapped
value is bound to its place (as GCM's additional data), so that one row cannot stand in for another.
"""

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from birthmark_sma.config import Settings
from birthmark_sma.errors import ConfigurationError, WrongSecretError
from birthmark_sma.storage.key_tables import StoredKek
from birthmark_sma.storage.private_files import read_private_file

KEK_BYTES = 32
_NONCE_BYTES = 12
_SALT_BYTES = 16
# 64 MiB and about 0.2 s: a guess must cost more than the passphrase's owner notices once a start.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**16, 8, 1
_NUC_HASH_KEY_PLACE = b"nuc hash key"


class KeyEncryptionKey:
    """An AES-256 key that wraps other keys (AES-256-GCM, SP 800-38D). It has no telling repr."""

    __slots__ = ("_aead", "_key", "kek_id")

    def __init__(self, kek_id: int, key: bytes) -> None:
        self.kek_id = kek_id
        self._key = key
        self._aead = AESGCM(key)

    def wrap(self, plaintext: bytes, place: bytes) -> bytes:
        """Seal a secret to its place: 12 bytes of nonce, the ciphertext, 16 bytes of tag."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plaintext, place)

    def unwrap(self, wrapped: bytes, place: bytes) -> bytes:
        """Open what `wrap` sealed. Raises WrongSecretError under another key or place."""
        nonce, ciphertext = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        try:
            return self._aead.decrypt(nonce, ciphertext, place)
        except (InvalidTag, ValueError):
            raise WrongSecretError(
                "The key-encryption key is not the one that this authority's secrets are wrapped"
                " under: give the CA_PASSWORD or SMA_KEK_FILE that it was initialised with."
            ) from None

    def derive_nuc_hash_key(self) -> bytes:
        """Return the 32-byte key for NUC hashes (RFC 5869), once, when the authority is founded."""
        return HKDF(SHA256(), KEK_BYTES, salt=None, info=_NUC_HASH_KEY_PLACE).derive(self._key)


class NucHashIndex:
    """Turns a NUC hash into what is stored and looked up: HMAC-SHA256 under a secret key."""

    __slots__ = ("_keyed",)

    def __init__(self, key: bytes) -> None:
        self._keyed = HMAC(key, SHA256())

    def of(self, nuc_hash: bytes) -> bytes:
        """Return the 32-byte HMAC (RFC 2104) of a NUC hash."""
        # Unlike the standard library's, this one keeps the interpreter's lock. To let go of it for
        # half a microsecond costs a busy server more than the digest.
        keyed = self._keyed.copy()
        keyed.update(nuc_hash)
        return keyed.finalize()


@dataclass(frozen=True, slots=True)
class OpenedSecrets:
    """The secrets in force, once proven to be the right ones."""

    kek: KeyEncryptionKey = field(repr=False)
    nuc_hash_index: NucHashIndex = field(repr=False)


def found_secrets(settings: Settings, passphrase: bytes) -> tuple[StoredKek, OpenedSecrets]:
    """Make the key-encryption key of a new authority, and the record that proves it later."""
    source = "file" if settings.kek_file else "passphrase"
    salt = secrets.token_bytes(_SALT_BYTES)
    kek = _obtain(1, source, salt, settings, passphrase)
    nuc_hash_key = kek.derive_nuc_hash_key()
    stored = StoredKek(
        kek_id=kek.kek_id,
        source=source,
        salt=salt,
        wrapped_nuc_hash_key=kek.wrap(nuc_hash_key, _NUC_HASH_KEY_PLACE),
    )
    return stored, OpenedSecrets(kek, NucHashIndex(nuc_hash_key))


def open_secrets(stored: StoredKek, settings: Settings, passphrase: bytes) -> OpenedSecrets:
    """Obtain the key-encryption key of an existing authority and prove it.

    Raises WrongSecretError where it is another, ConfigurationError where its source is not given.
    """
    if stored.source == "file" and settings.kek_file is None:
        raise ConfigurationError(
            "This authority's keys are wrapped under a key file: set SMA_KEK_FILE to its path."
        )
    kek = _obtain(stored.kek_id, stored.source, stored.salt, settings, passphrase)
    nuc_hash_key = kek.unwrap(stored.wrapped_nuc_hash_key, _NUC_HASH_KEY_PLACE)
    return OpenedSecrets(kek, NucHashIndex(nuc_hash_key))


def _obtain(
    kek_id: int, source: str, salt: bytes, settings: Settings, passphrase: bytes
) -> KeyEncryptionKey:
    if source == "file" and settings.kek_file is not None:
        return KeyEncryptionKey(kek_id, _read_kek_file(settings.kek_file))
    scrypt = Scrypt(salt=salt, length=KEK_BYTES, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P)
    return KeyEncryptionKey(kek_id, scrypt.derive(passphrase))


def _read_kek_file(path: Path) -> bytes:
    content = read_private_file(path)
    if len(content) == KEK_BYTES:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEK_BYTES:
        raise ConfigurationError(
            "SMA_KEK_FILE holds neither 32 raw bytes nor 64 hex digits. To make one, type:"
            " openssl rand -hex 32"
        )
    return key
