"""The intermediate's private key at rest: sealed under the key-encryption key.

Older authorities have it as PKCS#8 under the passphrase, whose derivation of 2,048 rounds is quick
to guess at. Such a key still opens, and a rotation seals it.
"""

from collections.abc import Callable

from sqlalchemy import Connection

from birthmark_sma.authority.ca.store import StoredCa
from birthmark_sma.authority.kek.wrapping import KeyEncryptionKey, KeyEncryptionKeys
from birthmark_sma.errors import NotInitialisedError
from birthmark_sma.pki.keys.ca_keys import Signer, load_der, load_encrypted

_PLACE = b"intermediate ca key"


def seal_ca_key(signer: Signer, kek: KeyEncryptionKey) -> bytes:
    """Return the intermediate's key as the database keeps it."""
    return kek.wrap(signer.private_der(), _PLACE)


def open_ca_key(
    connection: Connection,
    intermediate: StoredCa,
    keks: KeyEncryptionKeys,
    passphrase: Callable[[], bytes],
) -> Signer:
    """Open the intermediate's key in either form; only the old one asks for the passphrase.

    Raises WrongSecretError, or what asking raises.
    """
    if intermediate.sealed_private_key is not None and intermediate.kek_id is not None:
        return load_der(
            keks.unwrap(connection, intermediate.sealed_private_key, intermediate.kek_id, _PLACE)
        )
    if intermediate.encrypted_private_key is not None:
        return load_encrypted(intermediate.encrypted_private_key, passphrase())
    raise NotInitialisedError
