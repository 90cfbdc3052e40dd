"""Download CRLs from a server, as a verifier does."""

import time
from collections.abc import Mapping
from typing import Any

import httpx2
from cryptography import x509

INTERMEDIATE_CRL = "/pki/intermediate.crl"
ROOT_CRL = "/pki/root.crl"


def fetch_crl(
    client: httpx2.Client, path: str = INTERMEDIATE_CRL
) -> x509.CertificateRevocationList:
    """Return the CRL of a server."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/pkix-crl"
    return x509.load_der_x509_crl(answer.content)


def fetch_crl_with(
    client: httpx2.Client, certificate_serial: int, *, within: float
) -> x509.CertificateRevocationList:
    """Download the CRL until it lists a certificate. Fail after `within` seconds."""
    deadline = time.monotonic() + within
    etag = ""
    while True:
        answer = client.get(INTERMEDIATE_CRL, headers={"If-None-Match": etag})
        if answer.status_code != 304:
            assert answer.status_code == 200, answer.text
            crl = x509.load_der_x509_crl(answer.content)
            if crl.get_revoked_certificate_by_serial_number(certificate_serial) is not None:
                return crl
            etag = answer.headers["etag"]
        assert time.monotonic() < deadline, f"{certificate_serial:x} is not listed"
        time.sleep(0.1)


def number_of(crl: x509.CertificateRevocationList) -> int:
    """Return the CRL number (RFC 5280, section 5.2.3)."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def certificate_serial_of(answer: Mapping[str, Any]) -> int:
    """Return the serial number of the certificate in a provisioning response."""
    return x509.load_pem_x509_certificate(answer["device_certificate"].encode()).serial_number
