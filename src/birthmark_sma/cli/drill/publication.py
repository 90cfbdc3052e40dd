"""Measure what verifiers see of an act: the revocation list and the OCSP response.

`run` calls it before an act and after it. Both are asked for as any verifier asks, over HTTP.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp

from birthmark_sma.authority.ca.issuers import OCSP_PATH, crl_path

_PAUSE_SECONDS = 0.05
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A list or an OCSP response: its size in bytes, the time of its fetch in milliseconds.

    `shown_at` is the Unix time at which it was seen to show a revocation first, or None.
    """

    size: int
    milliseconds: float
    shown_at: float | None = None


class Publication:
    """The lists and OCSP responses of an authority at a URL."""

    def __init__(self, url: str, client: httpx2.Client) -> None:
        self._url = url
        self._client = client

    def fetch_list(self, name: str) -> Fetched:
        """Return the size of the list of a CA."""
        content, milliseconds = self._timed(lambda: self._client.get(self._url + crl_path(name)))
        return Fetched(len(content), milliseconds)

    def await_listed(self, name: str, serial: int) -> Fetched:
        """Return the first list of a CA that has a certificate, or the last list after a minute."""

        def shows(content: bytes) -> bool:
            found = x509.load_der_x509_crl(content).get_revoked_certificate_by_serial_number(serial)
            return found is not None

        return self._await(lambda: self._client.get(self._url + crl_path(name)), shows)

    def await_revoked(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Fetched:
        """Return the first OCSP response that says revoked, or the last one after a minute."""
        request = _request(certificate, issuer)

        def shows(content: bytes) -> bool:
            answer = ocsp.load_der_ocsp_response(content)
            is_good = answer.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
            return is_good and answer.certificate_status is ocsp.OCSPCertStatus.REVOKED

        return self._await(lambda: self._ask(request), shows)

    def _ask(self, request: bytes) -> httpx2.Response:
        return self._client.post(
            self._url + OCSP_PATH,
            content=request,
            headers={"Content-Type": "application/ocsp-request"},
        )

    def _await(self, ask: Callable[[], httpx2.Response], shows: Callable[[bytes], bool]) -> Fetched:
        deadline = time.monotonic() + _LONGEST_SECONDS
        while True:
            content, milliseconds = self._timed(ask)
            if shows(content):
                return Fetched(len(content), milliseconds, time.time())
            if time.monotonic() > deadline:
                return Fetched(len(content), milliseconds)
            time.sleep(_PAUSE_SECONDS)

    @staticmethod
    def _timed(ask: Callable[[], httpx2.Response]) -> tuple[bytes, float]:
        before = time.perf_counter()
        content = ask().raise_for_status().content
        return content, (time.perf_counter() - before) * 1_000


def _request(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA256())
    return builder.build().public_bytes(serialization.Encoding.DER)
