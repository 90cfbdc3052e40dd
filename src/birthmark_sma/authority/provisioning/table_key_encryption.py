"""Seal a device's secrets to a key of its own: compact JWE (RFC 7516, RFC 7518).

For a device whose transport is not trusted with its keys. EC and X25519 keys use ECDH-ES+A256KW,
RSA keys RSA-OAEP-256; the content is always A256GCM.
"""

import json
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwe
from joserfc.jwk import ECKey, OKPKey, RSAKey

from birthmark_sma.pki.keys.key_policy import KeyEncryptionKey

_CONTENT = "A256GCM"


def seal_table_keys(secrets: Mapping[str, object], recipient: KeyEncryptionKey) -> str:
    """Return a JSON object as compact JWE that only the recipient can open.

    It holds `device_serial` and `certificate_sha256`, which say whose secrets they are, and
    `nuc_hash` and `table_keys`.
    """
    algorithm, key = _import(recipient)
    return jwe.encrypt_compact(
        {"alg": algorithm, "enc": _CONTENT, "cty": "json"},
        json.dumps(secrets).encode(),
        key,
        registry=jwe.JWERegistry(algorithms=[algorithm, _CONTENT]),
    )


def _import(recipient: KeyEncryptionKey) -> tuple[str, RSAKey | ECKey | OKPKey]:
    pem = recipient.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if isinstance(recipient, rsa.RSAPublicKey):
        return "RSA-OAEP-256", RSAKey.import_key(pem)
    kind = ECKey if isinstance(recipient, ec.EllipticCurvePublicKey) else OKPKey
    return "ECDH-ES+A256KW", kind.import_key(pem)
