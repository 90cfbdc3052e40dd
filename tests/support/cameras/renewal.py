"""A device that renews its certificate over HTTP, and every way to send a wrong request."""

import secrets
from base64 import b64encode
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark_sma.pki.csr import decode
from birthmark_sma.pki.keys.recipient_key import recipient_urn
from birthmark_sma.protocol.bundle import format_time
from birthmark_sma.protocol.renewal import RenewalProof, certificate_id, make_proof, sign_renewal
from tests.support.cameras.camera import PROVISION, csr_pem, new_key, provision_body, public_pem

RENEW = "/api/v1/devices/renew"
RENEWAL_INFO = "/api/v1/devices/renewal-info/"


@dataclass(frozen=True)
class RenewingDevice:
    """A device: its serial, its private key, and its certificate in PEM."""

    serial: str
    key: Any
    certificate: str

    @classmethod
    def provisioned(
        cls, client: httpx2.Client, key: Any | None = None, **fields: Any
    ) -> "RenewingDevice":
        """Provision a new device over HTTP."""
        serial, key = f"renewing-{secrets.token_hex(8)}", key or new_key()
        body = provision_body(serial, device_public_key=public_pem(key)) | fields
        response = client.post(PROVISION, json=body)
        assert response.status_code == 200, response.text
        return cls(serial, key, response.json()["device_certificate"])

    def request(self, **options: Any) -> dict[str, Any]:
        """Return the body of a request: see `renewal_body`."""
        return renewal_body(self, **options)

    def renew(self, client: httpx2.Client, **options: Any) -> httpx2.Response:
        """Send a request with these options (`renewal_body`)."""
        return client.post(RENEW, json=self.request(**options))

    def renewed(self, client: httpx2.Client, **options: Any) -> "RenewingDevice":
        """Renew, and return the device with its new certificate. Fails unless it is a 200."""
        key = options.pop("key", None) or new_key()
        response = self.renew(client, key=key, **options)
        assert response.status_code == 200, response.text
        return replace(self, key=key, certificate=response.json()["device_certificate"])

    @property
    def loaded(self) -> x509.Certificate:
        """Return the parsed certificate."""
        return x509.load_pem_x509_certificate(self.certificate.encode())

    @property
    def certificate_serial(self) -> str:
        """Return the serial number of the certificate, as the register writes it."""
        return f"{self.loaded.serial_number:x}"

    @property
    def window_path(self) -> str:
        """Return the path of the certificate's renewal window."""
        extension = self.loaded.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        identifier = extension.value.key_identifier
        assert identifier is not None
        return RENEWAL_INFO + certificate_id(identifier, self.loaded.serial_number)


def renewal_body(
    device: RenewingDevice,
    *,
    key: Any | None = None,
    csr: str | None = None,
    recipient: Any | None = None,
    supersede: bool = False,
    at: datetime | None = None,
    sign_with: Any | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return a signed request for a new key, or for the one given.

    `fields` are set after the signature was made; None leaves a field out.
    """
    uris = () if recipient is None else (recipient_urn(recipient.public_key()),)
    csr = csr or csr_pem(key or new_key(), device.serial, *uris)
    at = at or datetime.now(UTC)
    proof = make_proof(
        device.loaded.public_bytes(Encoding.DER),
        decode(csr),
        None if recipient is None else _spki(recipient),
        requested_at=at,
        supersede=supersede,
    )
    body: dict[str, Any] = {
        "device_certificate": device.certificate,
        "csr": csr,
        "supersede": supersede,
        "requested_at": format_time(at),
        "signature": sign_body(proof, sign_with or device.key),
    }
    if recipient is not None:
        body["key_encryption_public_key"] = public_pem(recipient)
    return {name: value for name, value in (body | fields).items() if value is not None}


def sign_body(proof: RenewalProof, key: Any) -> str:
    """Return the `signature` of a request."""
    return b64encode(sign_renewal(proof, key)).decode()


def _spki(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded
