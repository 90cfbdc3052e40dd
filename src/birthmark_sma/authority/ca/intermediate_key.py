"""Encrypt and decrypt the private keys of the intermediates, which the database stores.

Called by the ceremony, the rotation of secrets and the opening of an authority. The key is wrapped
under the key-encryption key. Older authorities have it as PKCS#8 under the passphrase, with a
derivation of only 2,048 rounds, against which guessing is fast. Such a key can still be opened, and
a rotation wraps it. Never write that older form.
"""

from collections.abc import Callable

from sqlalchemy import Connection

from birthmark_sma.authority.ca.issuers import OpenIssuers
from birthmark_sma.authority.ca.store import StoredCa
from birthmark_sma.authority.kek.passphrase_file import find_passphrase
from birthmark_sma.authority.kek.wrapping import (
    KeyEncryptionKey,
    KeyEncryptionKeys,
    OpenedSecrets,
)
from birthmark_sma.config import Settings
from birthmark_sma.errors import NotInitialisedError
from birthmark_sma.pki.certificates import Publication
from birthmark_sma.pki.keys.ca_keys import Signer, load_der, load_encrypted
from birthmark_sma.storage.engine import Database

_PLACE = b"intermediate ca key"


def seal_ca_key(signer: Signer, kek: KeyEncryptionKey) -> bytes:
    """Return an intermediate's private key, wrapped under the key-encryption key."""
    return kek.wrap(signer.private_der(), _PLACE)


def open_issuers(
    database: Database,
    settings: Settings,
    opened: OpenedSecrets,
    publication: Callable[[str], Publication | None] = lambda _name: None,
) -> OpenIssuers:
    """Open the register of CA certificates, with the private keys of all intermediates.

    `publication` returns the URLs of a CA for device certificates, by its name. Raises
    NotInitialisedError, WrongSecretError or ConfigurationError.
    """

    def open_key(connection: Connection, ca: StoredCa) -> Signer:
        return open_ca_key(connection, ca, opened.keks, lambda: find_passphrase(settings))

    with database.read() as connection:
        return OpenIssuers(connection, open_key, publication, database.clock.now)


def open_ca_key(
    connection: Connection,
    intermediate: StoredCa,
    keks: KeyEncryptionKeys,
    passphrase: Callable[[], bytes],
) -> Signer:
    """Return an intermediate's private key, decrypted from either form.

    `passphrase` is called for the older form only. Raises WrongSecretError if the secret does not
    decrypt it, NotInitialisedError if there is no key, KeyEncryptionKeyChangedError, or whatever
    `passphrase` raises.
    """
    if intermediate.sealed_private_key is not None and intermediate.kek_id is not None:
        return load_der(
            keks.unwrap(connection, intermediate.sealed_private_key, intermediate.kek_id, _PLACE)
        )
    if intermediate.encrypted_private_key is not None:
        return load_encrypted(intermediate.encrypted_private_key, passphrase())
    raise NotInitialisedError
