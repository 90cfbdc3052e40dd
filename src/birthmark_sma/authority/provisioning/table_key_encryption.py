"""Encrypt a device's secrets to its recipient key, as compact JWE (RFC 7516, RFC 7518).

Called by `provisioning.issuance` for requests with a recipient key: the transport then never sees
the secrets. `device.table_key_decryption` decrypts them. EC and X25519 keys use ECDH-ES+A256KW
(RFC 7518 section 4.6), RSA keys use RSA-OAEP-256 (section 4.3). The content encryption is A256GCM.
This module must never log a secret.
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
    """Return `secrets` as a compact JWE that only the recipient can decrypt.

    `secrets` has `device_serial` and `certificate_sha256`, which identify the device, `nuc_hash`
    and `table_keys`.
    """
    algorithm, key = _import(recipient)
    # The registry allows these two algorithms only.
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
