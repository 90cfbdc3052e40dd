"""OCSP requests for tests, and a linter of responses. `revocation_judges` has programs that ask."""

import base64
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from pkilint import loader, pkix
from pkilint.pkix import extension, name
from pkilint.pkix import ocsp as ocsp_linter

from birthmark_sma.pki import der
from birthmark_sma.pki.ocsp.responses import hash_issuer
from birthmark_sma.pki.parsing import elements
from tests.support.pki.certificate_verifiers import Finding, findings

PATH = "/pki/ocsp/"
REQUEST_TYPE = {"Content-Type": "application/ocsp-request"}
RESPONSE_TYPE = "application/ocsp-response"
NONCE = b"a nonce of thirty-two characters"
_TRIES = 5


def request_for(
    issuer: x509.Certificate,
    serial_number: int,
    *,
    nonce: bytes | None = None,
    algorithm: hashes.HashAlgorithm | None = None,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> bytes:
    """Return a request in DER, made by the cryptography library. CertIDs use SHA-1 by default."""
    name = "sha256" if isinstance(algorithm, hashes.SHA256) else "sha1"
    hashed = hash_issuer(issuer, name)
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        hashed.name_hash, hashed.key_hash, serial_number, algorithm or hashes.SHA1()
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    for each, critical in extensions:
        builder = builder.add_extension(each, critical)
    return builder.build().public_bytes(Encoding.DER)


def joined(*requests: bytes) -> bytes:
    """Return one request for all certificates of these, which have no extensions."""
    asked = []
    for each in requests:
        (request,) = elements(each)
        (tbs,) = elements(request.content)
        (listed,) = elements(tbs.content)
        asked.append(listed.content)
    return der.sequence(der.sequence(der.sequence(*asked)))


def post(client: httpx2.Client, request: bytes, path: str = PATH) -> httpx2.Response:
    """Send a request by POST."""
    return client.post(path, content=request, headers=REQUEST_TYPE)


def get_path(request: bytes) -> str:
    """Return the path of a GET for a request."""
    return PATH + quote(base64.b64encode(request).decode(), safe="")


def ask(
    client: httpx2.Client, issuer: x509.Certificate, serial_number: int, **options: Any
) -> ocsp.OCSPResponse:
    """Return the response about a certificate, which is successful. Its signature is verified.

    Like every client, it asks again after tryLater: a very busy machine may need more than 2 s.
    """
    request = request_for(issuer, serial_number, **options)
    for _ in range(_TRIES):
        answer = post(client, request)
        assert answer.status_code == 200, answer.text
        if status_of(answer.content) is not ocsp.OCSPResponseStatus.TRY_LATER:
            break
    assert answer.headers["content-type"] == RESPONSE_TYPE
    return verified(answer.content, issuer)


def verified(response: bytes, issuer: x509.Certificate) -> ocsp.OCSPResponse:
    """Return a successful response that a delegated responder of this issuer signed."""
    read = ocsp.load_der_ocsp_response(response)
    assert read.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
    (responder,) = read.certificates
    responder.verify_directly_issued_by(issuer)
    key: Any = responder.public_key()
    algorithm = read.signature_hash_algorithm
    assert algorithm is not None
    key.verify(read.signature, read.tbs_response_bytes, ec.ECDSA(algorithm))
    return read


def status_of(response: bytes) -> ocsp.OCSPResponseStatus:
    """Return the status of a response: successful, or one of the errors."""
    return ocsp.load_der_ocsp_response(response).response_status


def lint_response(response: bytes) -> list[Finding]:
    """Return the findings of pkilint's OCSP linter at WARNING or above."""
    linter = ocsp_linter.create_pkix_ocsp_response_validator_container(
        [
            ocsp_linter.create_response_decoder(),
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [],
    )
    document = loader.RFC6960OCSPResponseDocumentLoader().load_der_document(response)
    return findings(linter.validate(document.root))
