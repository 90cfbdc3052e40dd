"""JSON objects of certificates and CAs."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from birthmark_sma.authority.ca.issuers import OpenCa


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 fingerprint as pairs of upper-case hex digits, separated by colons."""
    return certificate.fingerprint(SHA256()).hex(":").upper()


def certificate_as_json(certificate: x509.Certificate) -> dict[str, Any]:
    """Return names, serial number, validity and fingerprint of a certificate."""
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial_number": f"{certificate.serial_number:x}",
        "not_before": certificate.not_valid_before_utc,
        "not_after": certificate.not_valid_after_utc,
        "sha256_fingerprint": fingerprint(certificate),
    }


def ca_as_json(ca: OpenCa, devices: Mapping[str, int], now: datetime) -> dict[str, Any]:
    """Return a CA with its certificate. `devices` has the number of devices under each CA."""
    return {
        "name": ca.name,
        "role": ca.stored.role.value,
        "state": ca.state_at(now).value,
        "state_changed_at": ca.stored.state_changed_at,
        "signed_by": ca.stored.issuer,
        "devices": devices.get(ca.name, 0),
        **certificate_as_json(ca.certificate),
        "certificate": ca.stored.certificate,
    }
