"""Derive one key of a table from the table's master key: HKDF-SHA256 (RFC 5869).

The normative derivation uses the salt `Birthmark` and the key index as info. The Birthmark
project's published clients use an empty salt and append the word to the index. Cache the
pseudorandom key of a table (`extract`): this halves the cost of every later key.
"""

import hmac
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from birthmark_sma.errors import ProtocolError

MASTER_KEY_BYTES = 32
DERIVED_KEY_BYTES = 32
MAX_KEY_INDEX = 2**32 - 1
"""The largest index that fits the 4-byte info field. A table holds far fewer keys."""

_HASH = "sha256"
_SHA256 = SHA256()
_BIRTHMARK = b"Birthmark"


@dataclass(frozen=True, slots=True)
class Derivation:
    """One set of HKDF inputs: the salt, and the suffix after the 4-byte key index in the info.

    `number` and `label` identify the derivation in the replay ledger, so they never change.
    """

    salt: bytes
    info_suffix: bytes
    number: int = field(default=0, compare=False)
    label: bytes = field(default=b"", compare=False)


NORMATIVE = Derivation(salt=_BIRTHMARK, info_suffix=b"", number=1, label=b"")
PUBLISHED_CLIENTS = Derivation(salt=b"", info_suffix=_BIRTHMARK, number=2, label=b"published")


def extract(master_key: bytes, derivation: Derivation = NORMATIVE) -> bytes:
    """Return the 32-byte pseudorandom key of a table (RFC 5869, section 2.2).

    Raises ProtocolError unless the master key is 32 bytes long.
    """
    if len(master_key) != MASTER_KEY_BYTES:
        raise ProtocolError(f"A master key has {MASTER_KEY_BYTES} bytes, not {len(master_key)}.")
    # Section 2.2 replaces a missing salt by HashLen zero bytes. HMAC pads an empty key to the same
    # value.
    return hmac.digest(derivation.salt, master_key, _HASH)


def expand(pseudorandom_key: bytes, key_index: int, derivation: Derivation = NORMATIVE) -> bytes:
    """Return the 32-byte key at one index (RFC 5869, section 2.3).

    Raises ProtocolError for an index that does not fit the 4-byte info field.
    """
    if not 0 <= key_index <= MAX_KEY_INDEX:
        raise ProtocolError(f"A key index lies in 0..{MAX_KEY_INDEX}, not {key_index}.")
    info = key_index.to_bytes(4, "big") + derivation.info_suffix
    return HKDFExpand(_SHA256, DERIVED_KEY_BYTES, info).derive(pseudorandom_key)


def derive_key(master_key: bytes, key_index: int, derivation: Derivation = NORMATIVE) -> bytes:
    """Return the 32-byte key at one index of one table: extract, then expand."""
    return expand(extract(master_key, derivation), key_index, derivation)
