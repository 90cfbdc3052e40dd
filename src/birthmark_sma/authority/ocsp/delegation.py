"""Keep a delegated OCSP responder for each issuer: a P-256 key and a certificate of a week.

`authority.authority` starts it in every server process, and `responder` asks it for each signature.
The key must never leave the memory of its process: each process has its own, and makes a new one
with each certificate (docs/adr/0014).
"""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509

from birthmark_sma.authority.ca.ceremony import random_serial_number
from birthmark_sma.errors import IssuerExpiredError
from birthmark_sma.pki import certificates, profiles
from birthmark_sma.pki.keys import ca_keys
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer
from birthmark_sma.pki.ocsp.responses import ResponseSigner
from birthmark_sma.runtime.background_task import BackgroundTask

_RENEWED_BEFORE_END = profiles.OCSP_RESPONDER.validity / 2
_LEAST = timedelta(minutes=1)  # the shortest time for which a certificate is still used

_log = logging.getLogger(__name__)


class OcspIssuer(Protocol):
    """An issuer of device certificates: its name, its certificate, and its key as a Signer."""

    @property
    def name(self) -> str:
        """The name in `ca_certificates`."""

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate of the CA."""

    @property
    def signer(self) -> Signer:
        """The private key of the CA."""


class Delegation(BackgroundTask):
    """Makes the responders of all issuers, and renews them when half of their week is over.

    `issuers` returns the issuers, the same objects until they change. `now` returns the time of the
    database's clock. Safe to use from any thread.
    """

    name = "ocsp-responder"
    every_seconds = 60.0

    def __init__(
        self, issuers: Callable[[], Sequence[OcspIssuer]], now: Callable[[], datetime]
    ) -> None:
        super().__init__()
        self.issuers = issuers
        self.now = now
        self._signers: dict[x509.Certificate, ResponseSigner] = {}
        self._renewing = threading.Lock()

    def find(self, issuer: OcspIssuer, now: datetime) -> ResponseSigner | None:
        """Return the responder of an issuer, or None if it must be renewed first.

        The time decides at each request, and not a timer: after a jump of the clock, the present
        certificate may begin in the future or have ended.
        """
        signer = self._signers.get(issuer.certificate)
        if signer is None or not signer.not_before <= now < signer.not_after - _LEAST:
            return None
        # A certificate that ends with its issuer cannot be renewed to a later end.
        ends_with_issuer = signer.not_after >= issuer.certificate.not_valid_after_utc
        due = now >= signer.not_after - _RENEWED_BEFORE_END
        return None if due and not ends_with_issuer else signer

    def renew(self, issuer: OcspIssuer, now: datetime) -> ResponseSigner:
        """Return the responder of an issuer, renewed if that is due.

        The issuer's signature may take milliseconds: do not call this method on an event loop.
        Raises IssuerExpiredError if the issuer's certificate is not valid at `now`.
        """
        with self._renewing:
            signer = self.find(issuer, now)
            if signer is None:
                signer = self._signers[issuer.certificate] = _make(issuer, now)
            return signer

    def earliest_end(self) -> datetime | None:
        """Return when the first of the certificates ends, or None before there is one."""
        return min((each.not_after for each in [*self._signers.values()]), default=None)

    def work(self, now: datetime) -> None:
        """Renew what is due, and forget issuers that are no longer there."""
        now = self.now()  # the database's clock counts
        issuers = self.issuers()
        with self._renewing:
            for gone in self._signers.keys() - {each.certificate for each in issuers}:
                del self._signers[gone]
        for issuer in issuers:
            try:
                self.renew(issuer, now)
            except IssuerExpiredError as error:
                self._signers.pop(issuer.certificate, None)
                _log.debug("no OCSP responder for an issuer: %s", error)


def _make(issuer: OcspIssuer, now: datetime) -> ResponseSigner:
    signer = ca_keys.generate(CaKeyType.EC_P256)
    prepared = certificates.prepare_ocsp_responder(
        signer.public_key,
        issuer=issuer.certificate,
        now=now,
        serial_number=random_serial_number(),
    )
    certificate = certificates.sign(prepared, issuer.signer, issuer=issuer.certificate)
    return ResponseSigner(certificate, signer)
