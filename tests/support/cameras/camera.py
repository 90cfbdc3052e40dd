"""A camera for tests: its key pair, its provisioning over HTTP, and camera tokens.

The secrets stay in memory. `birthmark_sma.device` is the product's camera, with files.
"""

import secrets
from dataclasses import dataclass, field
from typing import Any

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from birthmark_sma.pki.keys.recipient_key import recipient_urn
from birthmark_sma.protocol import camera_token, key_derivation
from birthmark_sma.protocol.camera_token import CameraToken

PROVISION = "/api/v1/devices/provision"
VALIDATE = "/api/v1/validate/nuc"


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key pair of a device."""
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(key: Any) -> str:
    """Return the public key of a key pair, as SubjectPublicKeyInfo PEM."""
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


def csr_pem(key: ec.EllipticCurvePrivateKey, device_serial: str | None = None, *uris: str) -> str:
    """Return a CSR in PEM, with an empty subject unless a serial is given."""
    names = [] if device_serial is None else [_common_name(device_serial)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    if uris:
        alternatives = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _common_name(device_serial: str) -> x509.NameAttribute[str]:
    return x509.NameAttribute(NameOID.COMMON_NAME, device_serial, _validate=False)


def sealed_fields(device_serial: str, recipient: Any | None = None) -> dict[str, Any]:
    """Return the request fields that make the authority seal the secrets to a recipient key."""
    recipient = recipient or new_key()
    return {
        "device_public_key": None,
        "csr": csr_pem(new_key(), device_serial, recipient_urn(recipient.public_key())),
        "key_encryption_public_key": public_pem(recipient),
    }


def provision_body(device_serial: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a provisioning request with a new key. `fields` are added to it."""
    body: dict[str, Any] = {
        "device_serial": device_serial,
        "device_family": "Test",
        "device_public_key": public_pem(new_key()),
    }
    return body | fields


@dataclass(frozen=True)
class Camera:
    """A provisioned camera: its secrets, and the whole provisioning response."""

    serial: str
    nuc_hash: bytes = field(repr=False)
    table_keys: dict[int, bytes] = field(repr=False)
    response: dict[str, Any] = field(repr=False)

    @classmethod
    def provisioned(cls, client: httpx2.Client, serial: str, **fields: Any) -> "Camera":
        """Provision a camera over HTTP. Fails unless the response is a 200."""
        response = client.post(PROVISION, json=provision_body(serial, **fields))
        assert response.status_code == 200, response.text
        return cls.of(serial, response.json())

    @classmethod
    def of(cls, serial: str, response: dict[str, Any]) -> "Camera":
        """Return the camera that received this provisioning response."""
        keys = {int(table): bytes.fromhex(key) for table, key in response["table_keys"].items()}
        return cls(serial, bytes.fromhex(response["simulated_nuc_hash"]), keys, response)

    def token(
        self,
        table_id: int | None = None,
        key_index: int = 7,
        *,
        nuc_hash: bytes | None = None,
        master_key: bytes | None = None,
    ) -> CameraToken:
        """Return a new token. It is genuine unless another NUC hash or master key is given."""
        table = min(self.table_keys) if table_id is None else table_id
        key = key_derivation.derive_key(master_key or self.table_keys[table], key_index)
        return camera_token.seal(
            nuc_hash or self.nuc_hash,
            key=key,
            table_id=table,
            key_index=key_index,
            nonce=secrets.token_bytes(camera_token.NONCE_BYTES),
        )


def wire(token: CameraToken) -> dict[str, Any]:
    """Return a camera token as the JSON object of the API."""
    return {
        "encrypted_nuc_hash": token.encrypted_nuc_hash.hex(),
        "table_id": token.table_id,
        "key_index": token.key_index,
        "nonce": token.nonce.hex(),
    }
