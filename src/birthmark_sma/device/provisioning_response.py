"""Check the authority's response to a provisioning request, and make the camera's identity of it.

`provisioning` calls `make_identity`. A response is used only if it is for this camera's key and
serial, under the pinned root, with secrets that only this camera can open. PURE: no clock, no I/O.
"""

import json
from collections.abc import Collection, Iterable
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from birthmark_sma.device.state import Identity, Pending, load_private_key
from birthmark_sma.device.table_key_decryption import open_table_keys
from birthmark_sma.errors import PathRefusedError, ProtocolError
from birthmark_sma.pki.path_validation import verify_path
from birthmark_sma.protocol.camera_token import NUC_HASH_BYTES
from birthmark_sma.protocol.key_derivation import MASTER_KEY_BYTES
from birthmark_sma.protocol.key_table import (
    MAX_WIRE_INTEGER,
    PROTOTYPE_SIZES,
    STANDARD_SIZES,
    TABLES_PER_DEVICE,
)

_SECRETS = frozenset({"device_serial", "certificate_sha256", "nuc_hash", "table_keys"})


class UnusableAnswerError(Exception):
    """A 200 with content that the camera did not ask for. Only `_Asking` handles it."""


def make_identity(
    pending: Pending,
    answer: bytes,
    *,
    root_fingerprints: Collection[str] = (),
    keys_per_table: int | None = None,
) -> Identity:
    """Check a response, and return the camera's identity.

    `root_fingerprints` are those of the pinned roots; empty to accept any root.

    Raises UnusableAnswerError with the reason.
    """
    try:
        fields: dict[str, Any] = json.loads(answer)
        leaf = _certificate(fields["device_certificate"])
        intermediate, root = (_certificate(pem) for pem in fields["certificate_chain"])
        certified = leaf.public_key()
        secret = open_table_keys(
            _text(fields["sealed_secrets"]), load_private_key(pending.key_encryption_private_key)
        )
        nuc_hash, table_keys = _secrets(secret, fields)
        provisioning_id = _text(fields["provisioning_id"])
    except (KeyError, TypeError, ValueError, RecursionError, UnsupportedAlgorithm, ProtocolError):
        raise UnusableAnswerError("the response does not come from such an authority") from None
    if certified != load_private_key(pending.private_key).public_key():
        raise UnusableAnswerError("the certificate in its response is for another key")
    fingerprint = root.fingerprint(hashes.SHA256()).hex()
    pinned = {each.lower().replace(":", "") for each in root_fingerprints}
    if pinned and fingerprint not in pinned:
        raise UnusableAnswerError("its root certificate is not one that the app pinned")
    try:
        # The camera's clock may be wrong, so the path is checked at a time from the certificates
        # themselves. An impossible date, such as in the year 0, raises ValueError.
        valid_from = max(each.not_valid_before_utc for each in (leaf, intermediate, root))
        named = verify_path(leaf, [intermediate], root=root, now=valid_from)
    except (PathRefusedError, ValueError):
        raise UnusableAnswerError(
            "the certificates in its response do not form a valid path"
        ) from None
    if named != pending.device_serial:
        raise UnusableAnswerError("the certificate in its response is for another camera")
    # The secrets name their device and certificate. Others belong to another camera or to another
    # response, which an attacker on the network may have recorded.
    sealed_for = (secret["device_serial"], secret["certificate_sha256"])
    if sealed_for != (pending.device_serial, leaf.fingerprint(hashes.SHA256()).hex()):
        raise UnusableAnswerError("the secrets in its response are for another certificate")
    return Identity(
        device_serial=pending.device_serial,
        provisioning_id=provisioning_id,
        device_certificate=to_pem(leaf),
        certificate_chain=(to_pem(intermediate), to_pem(root)),
        private_key=pending.private_key,
        nuc_hash=nuc_hash,
        table_keys=table_keys,
        nonce_secret=pending.nonce_secret,
        keys_per_table=keys_per_table or keys_in(table_keys),
    )


def keys_in(tables: Iterable[str]) -> int:
    """Return the number of keys per table, as far as the table ids reveal it.

    A prototype has only the tables 0 to 9. A camera of a full authority whose three tables are all
    among them (one in twenty million) uses only the first 100 keys of each. Its tokens pass as
    well.
    """
    is_prototype = all(PROTOTYPE_SIZES.has_table(int(table)) for table in tables)
    return (PROTOTYPE_SIZES if is_prototype else STANDARD_SIZES).keys_per_table


def _secrets(secret: dict[str, Any], fields: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the NUC hash and the master keys of the three tables, in hex.

    Raises ValueError, KeyError or TypeError if a field is not as expected.
    """
    table_keys, tables = secret["table_keys"], fields["table_assignments"]
    if set(secret) != _SECRETS or not isinstance(table_keys, dict):
        raise ValueError
    if not all(type(table) is int and 0 <= table <= MAX_WIRE_INTEGER for table in tables):
        raise ValueError
    if len(table_keys) != TABLES_PER_DEVICE or set(table_keys) != {str(table) for table in tables}:
        raise ValueError
    return _hex(secret["nuc_hash"], NUC_HASH_BYTES), {
        table: _hex(master_key, MASTER_KEY_BYTES) for table, master_key in table_keys.items()
    }


def to_pem(thing: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """Return a certificate or CSR as PEM."""
    return thing.public_bytes(serialization.Encoding.PEM).decode()


def _certificate(pem: object) -> x509.Certificate:
    try:
        # InvalidVersion is no ValueError in this library, so callers would not catch it.
        return x509.load_pem_x509_certificate(_text(pem).encode())
    except x509.InvalidVersion:
        raise ValueError from None


def _hex(value: object, length: int) -> str:
    content = bytes.fromhex(_text(value))
    if len(content) != length:
        raise ValueError
    return content.hex()


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
