"""Make the requests of a renewal, and make a renewed identity of the response.

`renewer` calls it. No clock, no I/O: the caller passes the time in.
"""

import json
from base64 import b64encode
from dataclasses import replace
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from birthmark_sma.device.certification import (
    UnusableAnswerError,
    make_csr,
    new_key,
    private_pem,
    public_pem,
    read_certified,
)
from birthmark_sma.device.state import Identity, PendingRenewal, load_private_key
from birthmark_sma.protocol.bundle import format_time
from birthmark_sma.protocol.renewal import certificate_id, make_proof, sign_renewal

PATH = "/api/v1/devices/renew"
WINDOW_PATH = "/api/v1/devices/renewal-info/"


def begin(identity: Identity, *, new_signing_key: bool) -> PendingRenewal:
    """Return the keys and the CSR of a renewal. Nothing is sent or written.

    The recipient key is new for each renewal, so an old response never fits.
    """
    signing = new_key() if new_signing_key else load_private_key(identity.private_key)
    recipient = new_key()
    return PendingRenewal(
        csr=make_csr(identity.device_serial, signing, recipient),
        private_key=private_pem(signing),
        key_encryption_private_key=private_pem(recipient),
    )


def make_request(
    device_certificate: str,
    private_key: str,
    pending: PendingRenewal,
    *,
    supersede: bool,
    now: datetime,
) -> bytes:
    """Return the body of the request, signed with the key of the certificate that it presents.

    The time is part of it, so each attempt has another body for the same CSR.
    """
    recipient = load_private_key(pending.key_encryption_private_key)
    presented = x509.load_pem_x509_certificate(device_certificate.encode())
    proof = make_proof(
        presented.public_bytes(serialization.Encoding.DER),
        x509.load_pem_x509_csr(pending.csr.encode()).public_bytes(serialization.Encoding.DER),
        recipient.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        requested_at=now.astimezone(UTC),
        supersede=supersede,
    )
    signature = sign_renewal(proof, load_private_key(private_key))
    return json.dumps(
        {
            "device_certificate": device_certificate,
            "csr": pending.csr,
            "key_encryption_public_key": public_pem(recipient),
            "supersede": supersede,
            "requested_at": format_time(proof.requested_at),
            "signature": b64encode(signature).decode(),
        }
    ).encode()


def read_response(identity: Identity, pending: PendingRenewal, answer: bytes) -> Identity:
    """Check a response, and return the renewed identity.

    The root must be the one that the camera has or one that the app pinned. Without a pin, a new
    root is trusted as the first one was: because it came from the authority's URL.

    Raises UnusableAnswerError with the reason.
    """
    root = x509.load_pem_x509_certificate(identity.certificate_chain[1].encode())
    trusted = {root.fingerprint(hashes.SHA256()).hex(), *identity.root_fingerprints}
    certified = read_certified(
        answer,
        device_serial=identity.device_serial,
        private_key=pending.private_key,
        key_encryption_private_key=pending.key_encryption_private_key,
        is_trusted=lambda each: not identity.root_fingerprints or each in trusted,
    )
    return replace(
        identity,
        device_certificate=certified.device_certificate,
        certificate_chain=certified.certificate_chain,
        private_key=pending.private_key,
        table_keys=certified.table_keys,
        renewal=None,
    )


def read_confirmation(identity: Identity, pending: PendingRenewal, answer: bytes) -> Identity:
    """Check the response to a repetition of the request that the identity's certificate answers.

    Returns the identity with the table keys of this response. They differ from those of the first
    response if the tables were rotated between, and the authority now expects tokens under them.

    Raises UnusableAnswerError with the reason.
    """
    confirmed = read_response(identity, pending, answer)
    if certificate_of(confirmed) != certificate_of(identity):
        raise UnusableAnswerError("the certificate in its response is not the one in use")
    return confirmed


def window_path(certificate: x509.Certificate) -> str | None:
    """Return the path of the certificate's window, or None if it does not name its issuer's key."""
    try:
        extension = x509.AuthorityKeyIdentifier
        issuer_key = certificate.extensions.get_extension_for_class(extension).value.key_identifier
    except (x509.ExtensionNotFound, ValueError):
        return None
    if issuer_key is None:
        return None
    return WINDOW_PATH + certificate_id(issuer_key, certificate.serial_number)


def certificate_of(identity: Identity) -> x509.Certificate:
    """Return the identity's device certificate."""
    return x509.load_pem_x509_certificate(identity.device_certificate.encode())
