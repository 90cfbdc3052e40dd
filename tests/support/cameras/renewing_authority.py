"""An authority that renews certificates, without a server: it answers as docs/protocol.md says.

Its clock, its windows and its faults are the test's. It is an HTTP client, for `start_camera`.
"""

import hashlib
import json
import secrets
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from birthmark_sma.authority.provisioning.table_key_encryption import seal_table_keys
from birthmark_sma.device.certification import private_pem, to_pem
from birthmark_sma.device.state import Identity
from birthmark_sma.pki import certificates, csr
from birthmark_sma.pki.keys.ca_keys import CaKeyType
from birthmark_sma.pki.keys.key_policy import check_key_encryption_key, load_public_key
from birthmark_sma.protocol.bundle import parse_time
from birthmark_sma.protocol.renewal import certificate_id, make_proof, verify_renewal
from tests.support.cameras.camera import new_key
from tests.support.in_process import Fault, problem
from tests.support.pki.chains import make_ca

SERIAL = "camera-7"
URL = "http://127.0.0.1:8000"
RENEW = "/api/v1/devices/renew"
_WINDOW = "/api/v1/devices/renewal-info/"
_LEEWAY = timedelta(minutes=5)


@dataclass
class _Known:
    """A certificate that the authority has issued."""

    certificate: x509.Certificate
    exchanged: tuple[str, x509.Certificate] | None = None
    """SHA-256 of the CSR by which it was renewed, and the certificate that replaced it."""
    superseded: bool = False
    table_keys: dict[str, str] = field(default_factory=dict)
    """The keys that the camera got last."""


class RenewingAuthority(httpx2.Client):
    """Answers renewals. Each request takes one of `faults`. `requests` lists them all."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self.ca = make_ca(CaKeyType.EC_P256, now=now() - timedelta(days=1))
        self.faults: list[Fault] = []
        self.requests: list[httpx2.Request] = []
        self.known: dict[str, _Known] = {}
        self.window: tuple[datetime, datetime] | None = None
        self.retry_after = "21600"
        self.active = True
        self.table_keys = new_table_keys()
        super().__init__(transport=httpx2.MockTransport(self._handle))

    @property
    def renewals(self) -> list[dict[str, Any]]:
        """The bodies of all requests to renew, in order."""
        return [json.loads(each.content) for each in self.requests if each.url.path == RENEW]

    @property
    def valid(self) -> list[x509.Certificate]:
        """The certificates that are not superseded."""
        return [each.certificate for each in self.known.values() if not each.superseded]

    def keys_of(self, certificate: bytes) -> dict[str, str]:
        """Return the table keys that belong to a certificate, from its DER."""
        return self.known[hashlib.sha256(certificate).hexdigest()].table_keys

    def identity(self) -> Identity:
        """Return the identity of a camera that was provisioned now."""
        key = new_key()
        certificate = self._issue(key.public_key())
        return Identity(
            device_serial=SERIAL,
            provisioning_id="PROV-1",
            device_certificate=to_pem(certificate),
            certificate_chain=(to_pem(self.ca.intermediate), to_pem(self.ca.root)),
            private_key=private_pem(key),
            nuc_hash="11" * 32,
            table_keys=dict(self.table_keys),
            nonce_secret=secrets.token_hex(32),
            keys_per_table=1_000,
            authority_url=URL,
        )

    def _issue(self, public_key: Any) -> x509.Certificate:
        prepared = certificates.prepare_device(
            public_key,
            SERIAL,
            issuer=self.ca.intermediate,
            now=self.now(),
            serial_number=secrets.randbits(150) | 1 << 150,
        )
        issued = certificates.sign(prepared, self.ca.signer, issuer=self.ca.intermediate)
        self.known[_digest(issued)] = _Known(issued, table_keys=self.table_keys)
        return issued

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        fault = self.faults.pop(0) if self.faults else None
        response = self._answer(request) if fault is None else self._faulty(request, fault)
        response.headers.setdefault("Date", format_datetime(self.now(), usegmt=True))
        return response

    def _faulty(self, request: httpx2.Request, fault: Fault) -> httpx2.Response:
        return fault(request, lambda: self._answer(request))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.startswith(_WINDOW):
            return self._window(request.url.path.removeprefix(_WINDOW))
        assert request.url.path == RENEW
        return self._renew(json.loads(request.content))

    def _window(self, asked: str) -> httpx2.Response:
        ids = {
            certificate_id(_issuer_key(each.certificate), each.certificate.serial_number)
            for each in self.known.values()
        }
        if asked not in ids or self.window is None:
            return problem(404, "not-found", "There is no such certificate.")
        start, end = (each.isoformat().replace("+00:00", "Z") for each in self.window)
        return httpx2.Response(
            200,
            json={"suggestedWindow": {"start": start, "end": end}},
            headers={"Retry-After": self.retry_after},
        )

    def _renew(self, body: dict[str, Any]) -> httpx2.Response:
        assert set(body) == {
            "device_certificate",
            "csr",
            "key_encryption_public_key",
            "supersede",
            "requested_at",
            "signature",
        }
        presented = x509.load_pem_x509_certificate(body["device_certificate"].encode())
        request = x509.load_pem_x509_csr(body["csr"].encode())
        recipient = load_public_key(body["key_encryption_public_key"])
        spki = check_key_encryption_key(recipient).public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        at = parse_time(body["requested_at"])
        assert at is not None
        proof = make_proof(
            presented.public_bytes(serialization.Encoding.DER),
            request.public_bytes(serialization.Encoding.DER),
            spki,
            requested_at=at,
            supersede=body["supersede"],
        )
        verify_renewal(proof, b64decode(body["signature"], validate=True), presented.public_key())
        if abs(self.now() - at) > _LEEWAY:
            return problem(403, "renewal-time-refused", f"It is {self.now()}, not {at}.")
        known = self.known.get(_digest(presented))
        asked = hashlib.sha256(request.public_bytes(serialization.Encoding.DER)).hexdigest()
        if known is None:
            return problem(403, "renewal-refused", "The certificate is unknown.")
        if not self.active:
            return problem(403, "device-not-active", "The device is suspended.")
        if known.exchanged is not None and known.exchanged[0] == asked:
            issued = known.exchanged[1]
            self.known[_digest(issued)].table_keys = self.table_keys
        elif known.superseded:
            return problem(403, "renewal-refused", "The certificate was superseded.")
        else:
            issued = self._issue(csr.verify(request, SERIAL))
            known.exchanged = asked, issued
        if body["supersede"]:
            for each in self.known.values():
                each.superseded = each.certificate != issued
        return self._issued(issued, recipient)

    def _issued(self, issued: x509.Certificate, recipient: object) -> httpx2.Response:
        secret = {
            "device_serial": SERIAL,
            "certificate_sha256": issued.fingerprint(hashes.SHA256()).hex(),
            "table_keys": self.known[_digest(issued)].table_keys,
        }
        return httpx2.Response(
            200,
            json={
                "device_certificate": to_pem(issued),
                "certificate_chain": [to_pem(self.ca.intermediate), to_pem(self.ca.root)],
                "table_assignments": sorted(map(int, self.table_keys)),
                "renewed_at": self.now().isoformat(),
                "sealed_secrets": seal_table_keys(secret, check_key_encryption_key(recipient)),
            },
        )


def new_table_keys() -> dict[str, str]:
    """Return new master keys of three tables."""
    return {table: secrets.token_hex(32) for table in ("11", "220", "1999")}


def _digest(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def _issuer_key(certificate: x509.Certificate) -> bytes:
    extension = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    identifier = extension.value.key_identifier
    assert identifier is not None
    return identifier
