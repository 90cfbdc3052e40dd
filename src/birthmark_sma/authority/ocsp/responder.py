"""Answer OCSP requests: from the cache, or signed on demand (RFC 6960, RFC 9919).

`web.api.pki.ocsp` calls `OcspResponder.answer`. The status in a response is at most a second old
when the response leaves, unless the database is away: each process reads the row of a certificate
again at most once a second, and many rows in one query. So a revocation or a reinstatement shows on
every process within two seconds, whoever made it. A signed response is sent again while the status
is the same, for up to five minutes. This module must never report an unknown certificate as good.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeAlias

from birthmark_sma.authority.ocsp.delegation import Delegation, OcspIssuer
from birthmark_sma.authority.ocsp.store import FoundCertificate
from birthmark_sma.authority.server_metrics import OcspSource, ServerMetrics
from birthmark_sma.elapsed import seconds_since_boot
from birthmark_sma.errors import (
    DatabaseUnavailableError,
    IssuerExpiredError,
    OcspRequestRefusedError,
    PoolFullError,
    ProfileViolationError,
)
from birthmark_sma.pki.ocsp.requests import CertId, IssuerHashes, OcspRequest, parse_request
from birthmark_sma.pki.ocsp.responses import (
    CertificateStatus,
    ResponseStatus,
    SingleResponse,
    Status,
    hash_issuer,
    unsigned,
)

MAX_AGE = timedelta(minutes=5)
"""A response is sent for this long before it is signed anew, and caches may keep it for as long."""
LIFETIME = timedelta(hours=1)
"""From thisUpdate to nextUpdate."""
UNKNOWN_LIFETIME = timedelta(minutes=1)
"""The same for an unknown certificate, which may be registered at any moment."""
MOST_ANSWERS = 10_000
"""The cached responses. With an RSA-4096 issuer they take about 21 MB in each process."""
_FRESH_SECONDS = 1.0
_UNKNOWN = CertificateStatus(Status.UNKNOWN)

LookUp: TypeAlias = Callable[[Collection[int]], Awaitable[Mapping[int, FoundCertificate]]]
"""Returns certificates by serial number, as `store.find_certificates` does."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class OcspAnswer:
    """An OCSPResponse in DER. Errors are not signed, and caches must not keep them."""

    der: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class SignedAnswer(OcspAnswer):
    """A successful OCSPResponse. Its `etag` is an entity tag (RFC 9110), with its quotes."""

    this_update: datetime
    next_update: datetime
    etag: str


@dataclass(slots=True, eq=False)
class _Kept:
    """A cached answer, the status that it tells, and when that was read last (since boot)."""

    answer: SignedAnswer
    status: CertificateStatus
    read_at: float

    def is_recent(self, now: datetime) -> bool:
        """Return True if the response need not be signed anew."""
        answer = self.answer
        return answer.this_update <= now < min(answer.this_update + MAX_AGE, answer.next_update)


class OcspResponder:
    """The responder of one process for all its issuers. Owned by the event loop.

    `look_up` reads the register, and raises DatabaseUnavailableError or PoolFullError.
    """

    def __init__(self, delegation: Delegation, look_up: LookUp, figures: ServerMetrics) -> None:
        self._delegation = delegation
        self._look_up = look_up
        self._figures = figures
        self._kept: OrderedDict[CertId, _Kept] = OrderedDict()
        self._issuers: Sequence[OcspIssuer] = ()
        self._by_hashes: dict[IssuerHashes, OcspIssuer] = {}

    async def answer(self, request: bytes, admit: Callable[[], Awaitable[None]]) -> OcspAnswer:
        """Return the response to a request in DER. Errors are OCSP's own, which are not signed.

        `admit` is called before a signature that only this caller uses: with a nonce, for several
        certificates, or for an unknown one. It raises RateLimitedError.
        """
        try:
            return await self._answer(parse_request(request), admit)
        except OcspRequestRefusedError:
            status = ResponseStatus.MALFORMED_REQUEST
        except IssuerExpiredError:
            status = ResponseStatus.UNAUTHORIZED
        except (DatabaseUnavailableError, PoolFullError):
            status = ResponseStatus.TRY_LATER
        except ProfileViolationError:
            _log.exception("an OCSP response was not signed")
            status = ResponseStatus.INTERNAL_ERROR
        return self._refuse(status)

    async def _answer(self, asked: OcspRequest, admit: Callable[[], Awaitable[None]]) -> OcspAnswer:
        issuer = self._find_issuer(asked)
        if issuer is None:  # nothing can be said with authority (RFC 9919, section 3.2.3)
            return self._refuse(ResponseStatus.UNAUTHORIZED)
        if asked.nonce is None and len(asked.certificates) == 1:
            return await self._answer_one(issuer, asked.certificates[0], admit)
        await admit()
        found = await self._look_up([each.serial_number for each in asked.certificates])
        statuses = [
            (each, _status_under(found.get(each.serial_number), issuer))
            for each in asked.certificates
        ]
        return await self._sign(issuer, statuses, asked.nonce)

    async def _answer_one(
        self, issuer: OcspIssuer, cert_id: CertId, admit: Callable[[], Awaitable[None]]
    ) -> OcspAnswer:
        now, began = self._delegation.now(), seconds_since_boot()
        kept = self._kept.get(cert_id)
        if kept is not None and not kept.is_recent(now):
            kept = None
        if kept is not None and began - kept.read_at < _FRESH_SECONDS:
            return self._send_again(cert_id, kept)
        try:
            found = await self._look_up([cert_id.serial_number])
        except DatabaseUnavailableError:
            # Not after PoolFullError: a flood of requests must not keep an old status alive.
            if kept is None:
                raise
            kept.read_at = seconds_since_boot()  # the next second does not wait for the database
            return self._send_again(cert_id, kept)
        certificate = found.get(cert_id.serial_number)
        if kept is not None and certificate is not None and kept.status == certificate.status:
            kept.read_at = began
            return self._send_again(cert_id, kept)
        status = _status_under(certificate, issuer)
        if status is _UNKNOWN:
            self._kept.pop(cert_id, None)
            await admit()
            return await self._sign(issuer, [(cert_id, status)])
        answer = await self._sign(issuer, [(cert_id, status)])
        self._kept[cert_id] = _Kept(answer, status, began)
        self._kept.move_to_end(cert_id)
        if len(self._kept) > MOST_ANSWERS:
            self._kept.popitem(last=False)
        return answer

    async def _sign(
        self,
        issuer: OcspIssuer,
        statuses: Sequence[tuple[CertId, CertificateStatus]],
        nonce: bytes | None = None,
    ) -> SignedAnswer:
        now = self._delegation.now()
        signer = self._delegation.find(issuer, now)
        if signer is None:
            signer = await asyncio.to_thread(self._delegation.renew, issuer, now)
        this_update = now.replace(microsecond=0)
        responses = []
        for cert_id, status in statuses:
            lifetime = UNKNOWN_LIFETIME if status is _UNKNOWN else LIFETIME
            next_update = min(this_update + lifetime, signer.not_after)
            responses.append(SingleResponse(cert_id, status, this_update, next_update))
        der = signer.sign(responses, now=this_update, nonce=nonce)
        for _, status in statuses:
            self._figures.ocsp_answered(status.status, OcspSource.SIGNED)
        return SignedAnswer(
            der,
            this_update,
            min(each.next_update for each in responses),
            f'"{hashlib.sha256(der).hexdigest()}"',  # RFC 9919, section 6.2
        )

    def _send_again(self, cert_id: CertId, kept: _Kept) -> OcspAnswer:
        if cert_id in self._kept:  # another request may have removed it meanwhile
            self._kept.move_to_end(cert_id)
        self._figures.ocsp_answered(kept.status.status, OcspSource.CACHED)
        return kept.answer

    def _refuse(self, status: ResponseStatus) -> OcspAnswer:
        self._figures.ocsp_refused(status)
        return OcspAnswer(_ERRORS[status])

    def _find_issuer(self, asked: OcspRequest) -> OcspIssuer | None:
        """Return the one issuer of all certificates of a request, or None."""
        issuers = self._delegation.issuers()
        if issuers != self._issuers:
            self._issuers = issuers
            self._by_hashes = {
                hash_issuer(each.certificate, algorithm): each
                for each in issuers
                for algorithm in ("sha1", "sha256")
            }
        first, *others = (self._by_hashes.get(each.issuer) for each in asked.certificates)
        return first if all(each is first for each in others) else None


_ERRORS = {status: unsigned(status) for status in ResponseStatus}


def _status_under(found: FoundCertificate | None, issuer: OcspIssuer) -> CertificateStatus:
    """Return the status of a certificate that is asked about under an issuer.

    Two issuers may use one serial number, so the certificate must be of this issuer.
    """
    return found.status if found is not None and found.issuer == issuer.name else _UNKNOWN
