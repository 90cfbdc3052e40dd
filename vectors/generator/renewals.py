"""Generate renewal_proof_test.json: what each kind of device key signs to renew its certificate."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark_sma.pki.keys.recipient_key import recipient_urn
from birthmark_sma.pki.names import requested_subject
from birthmark_sma.protocol.bundle import format_time
from birthmark_sma.protocol.bundle_signature import SigningKey
from birthmark_sma.protocol.renewal import SIGNING_PREFIX, make_proof
from vectors.generator.authorities import NOW, authority, der, device_certificate
from vectors.generator.bundles import DEVICE_KEYS, sign_as_device
from vectors.generator.document import Case, Document, Group, Result
from vectors.generator.seeded_keys import p256

_NOTES = {
    "AlteredRequest": "A field was changed after signing, as a relay could do it.",
    "AlteredSignature": "The signature was changed.",
    "OtherKey": "Another key made the signature: another device's, or the new one of the CSR.",
    "OtherScheme": "The right key signed another prefix.",
}
_REQUESTED = NOW + timedelta(microseconds=476_000)


@dataclass(frozen=True)
class _Request:
    """A request to renew the certificate of a key."""

    key: SigningKey
    csr: bytes
    recipient_key: bytes | None
    supersede: bool
    requested_at: datetime = _REQUESTED

    @property
    def certificate(self) -> bytes:
        """Return the DER of the device certificate."""
        return der(device_certificate(authority(), self.key.public_key(), "camera-7"))

    @property
    def signed_bytes(self) -> bytes:
        """Return the bytes to sign."""
        return make_proof(
            self.certificate,
            self.csr,
            self.recipient_key,
            requested_at=self.requested_at,
            supersede=self.supersede,
        ).signed_bytes()


def make() -> Document:
    """Return valid and invalid proofs for each kind of key."""
    return Document(
        algorithm="BirthmarkRenewal-v1",
        schema="schemas/renewal_proof_test_schema.json",
        header=[
            "certificate, csr and recipientKey (SubjectPublicKeyInfo, or null) are DER in hex."
            " signedBytes is what the device signs for this request, and signature the signature by"
            " publicKey. The kind of the key alone decides the scheme, as for bundles.",
            "deviceLabel is the label from which docs/vectors.md derives the device's key: sign"
            " signedBytes with it. RSA and Ed25519 give the signature of the valid test.",
        ],
        notes=_NOTES,
        groups=[_proofs(kind, make_key("test device")) for kind, make_key in DEVICE_KEYS.items()],
    )


def _proofs(kind: str, key: SigningKey) -> Group:
    new_key, recipient = p256("new key of test device"), p256("test recipient")
    plain = _Request(key, _csr(new_key), None, supersede=False)
    full = _Request(key, _csr(new_key, recipient), _spki(recipient), supersede=True)
    good = sign_as_device(full.signed_bytes, key)
    other_csr, other_key = _csr(p256("another key")), _spki(p256("another recipient"))
    later = _REQUESTED + timedelta(microseconds=1)
    altered = {
        "another CSR": replace(full, csr=other_csr),
        "another recipient key": replace(full, recipient_key=other_key),
        "without the recipient key": replace(full, recipient_key=None),
        "supersede turned off": replace(full, supersede=False),
        "a microsecond later": replace(full, requested_at=later),
    }
    tests = [
        _case("without table keys", "valid", plain, sign_as_device(plain.signed_bytes, key)),
        _case("with table keys, and supersede", "valid", full, good),
    ]
    tests += [
        _case(name, "invalid", each, good, "AlteredRequest") for name, each in altered.items()
    ]
    bundle = b"birthmark-bundle-v1\0" + full.signed_bytes.removeprefix(SIGNING_PREFIX)
    bad = (
        ("last bit flipped", bytes([*good[:-1], good[-1] ^ 1]), "AlteredSignature"),
        ("another device's key", _by(kind, "another test device", full), "OtherKey"),
        ("the new key", sign_as_device(full.signed_bytes, new_key), "OtherKey"),
        ("the prefix of a bundle", sign_as_device(bundle, key), "OtherScheme"),
    )
    tests += [_case(name, "invalid", full, signature, flag) for name, signature, flag in bad]
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    shared = {
        "keyKind": kind,
        "publicKey": public.decode("ascii"),
        "deviceLabel": "test device",
    }
    return Group("RenewalProof", tests, shared)


def _case(comment: str, result: Result, request: _Request, signature: bytes, *flags: str) -> Case:
    recipient = request.recipient_key
    fields: dict[str, Any] = {
        "certificate": request.certificate.hex(),
        "csr": request.csr.hex(),
        "recipientKey": None if recipient is None else recipient.hex(),
        "requestedAt": format_time(request.requested_at),
        "supersede": request.supersede,
        "signedBytes": request.signed_bytes.hex(),
        "signature": signature.hex(),
    }
    return Case(comment, result, fields, flags)


def _by(kind: str, label: str, request: _Request) -> bytes:
    return sign_as_device(request.signed_bytes, DEVICE_KEYS[kind](label))


def _csr(
    key: ec.EllipticCurvePrivateKey, recipient: ec.EllipticCurvePrivateKey | None = None
) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(requested_subject("camera-7"))
    if recipient is not None:
        uri = x509.UniformResourceIdentifier(recipient_urn(recipient.public_key()))
        builder = builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    signed = builder.sign(key, SHA256(), ecdsa_deterministic=True)
    return signed.public_bytes(Encoding.DER)


def _spki(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
