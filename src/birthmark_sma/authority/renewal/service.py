"""Renew a device certificate: verify the proof, sign the new certificate, register it.

Called by web/api/renewal/endpoints.py. The proof is the credential: no access key is involved. The
order of the steps matters.

1. `verify`: read the request, find the certificate in the register, verify the signature and the
time. Nothing before this may be counted against the device or tell its state.
2. The caller takes a unit of the device's rate limit, unless the request is a repetition.
3. `renew`: check CSR and keys, sign, and submit to the provisioning writer, whose transaction
decides (`renewal.registration`). Steps 1 and 3 run in the signing threads of provisioning.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.key_tables.device_keys import DeviceKeys
from birthmark_sma.authority.provisioning.issuance import (
    CheckedRequest,
    DeviceIssuer,
    ProvisioningRequest,
)
from birthmark_sma.authority.provisioning.registration import MOST_ATTEMPTS, OUTDATED
from birthmark_sma.authority.provisioning.service import Provisioner
from birthmark_sma.authority.renewal.proof import (
    PresentedCertificate,
    RenewalRequest,
    check_proof,
    read_request,
)
from birthmark_sma.authority.renewal.registration import (
    IssuedRenewal,
    Renewed,
    find_certificate,
    find_key_refusal,
)
from birthmark_sma.authority.renewal.rules import RegisteredCertificate, find_refusal
from birthmark_sma.authority.server_metrics import RenewalOutcome, ServerMetrics
from birthmark_sma.errors import (
    BirthmarkError,
    ConflictError,
    DatabaseUnavailableError,
    DeviceNotActiveError,
    PoolFullError,
    RateLimitedError,
    RenewalOutdatedError,
    RenewalRefusedError,
    RenewalTimeRefusedError,
    ShuttingDownError,
)
from birthmark_sma.pki.keys.key_policy import KeyEncryptionKey
from birthmark_sma.runtime.log_context import current_request
from birthmark_sma.storage.engine import Database
from birthmark_sma.storage.outages.deadlines import QUICK_SECONDS
from birthmark_sma.storage.outages.retries import retry

__all__ = ["RenewalRequest", "Renewed", "Renewer", "VerifiedRenewal"]

_UNKNOWN = (
    "This certificate is not registered here. Present the certificate that this authority issued to"
    " the device."
)

Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VerifiedRenewal:
    """A request whose proof was verified, for a device that may renew.

    `is_repetition` is True if the device has got its certificate for this very CSR.
    """

    request: RenewalRequest
    presented: PresentedCertificate
    device_serial: str
    is_repetition: bool


class Renewer:
    """Renews device certificates, from an event loop.

    It uses the threads and the writer of `provisioner`, which must handle items of the type
    IssuedRenewal. `grace` is the time after its expiry in which a certificate can be renewed.
    """

    def __init__(
        self,
        database: Database,
        maker: DeviceIssuer,
        provisioner: Provisioner,
        grace: timedelta,
        figures: ServerMetrics | None = None,
    ) -> None:
        self._database = database
        self._maker = maker
        self._provisioner = provisioner
        self._grace = grace
        self._figures = figures or ServerMetrics()

    def check_room(self, caller: str | None) -> None:
        """Raise PoolFullError if a request of this caller would be refused now.

        `caller` is as for `Provisioner.check_room`. Call this before the body is read.
        """
        if not self._provisioner.has_room(caller):
            self._figures.renewed(RenewalOutcome.OVERLOADED)
            raise PoolFullError

    @contextmanager
    def counted(self) -> Iterator[Callable[[Renewed], None]]:
        """Count the outcome of a request for the metrics. Call what it yields with the response."""
        outcome = RenewalOutcome.FAILED

        def succeed(renewed: Renewed) -> None:
            nonlocal outcome
            outcome = RenewalOutcome.REPEATED if renewed.is_repetition else RenewalOutcome.RENEWED

        try:
            yield succeed
        except BirthmarkError as error:
            outcome = _classify(error)
            raise
        finally:
            self._figures.renewed(outcome)

    async def verify(self, request: RenewalRequest, caller: str | None) -> VerifiedRenewal:
        """Verify the proof of a request, and that its device may renew.

        Raises PkiError for malformed PEM, RenewalRefusedError, RenewalTimeRefusedError,
        DeviceNotActiveError, PoolFullError, ShuttingDownError and DatabaseUnavailableError.
        """
        with self._provisioner.admitted(caller):
            return await self._run(partial(self._verify, request))

    async def renew(self, verified: VerifiedRenewal, caller: str | None) -> Renewed:
        """Return the new certificate once it is durable, or the one of the first such request.

        Raises PkiError for a refused CSR or key, PublicKeyInUseError, the errors of `verify`, and
        RenewalOutdatedError or one of OUTDATED if another renewal of the device, another
        intermediate or a rotation of its tables came between in every attempt.
        """
        with self._provisioner.admitted(caller):
            for _ in range(MOST_ATTEMPTS - 1):
                with contextlib.suppress(RenewalOutdatedError, *OUTDATED):
                    return await self._renew(verified)
            return await self._renew(verified)

    async def _renew(self, verified: VerifiedRenewal) -> Renewed:
        # Two steps, so that no signing thread waits for a commit.
        registering = await self._run(partial(self._sign, verified))
        renewed: Renewed = await asyncio.wrap_future(registering)
        if not renewed.is_repetition:
            _log.info(
                "renewed %s: its certificate %s was exchanged%s",
                verified.device_serial,
                verified.presented.certificate_serial,
                ", and all earlier ones are superseded" if verified.request.supersede else "",
            )
        return renewed

    async def _run(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.wrap_future(self._provisioner.start(work))

    # --- in a signing thread

    def _verify(self, request: RenewalRequest) -> VerifiedRenewal:
        presented = read_request(request)
        known = self._find(presented)
        # Before the signature: this key was checked when it was certified. A certificate that
        # somebody made with another key, or a giant one, is refused without any arithmetic.
        if known is None or known.key_fingerprint != presented.key_fingerprint:
            raise RenewalRefusedError(_UNKNOWN)
        now = self._database.clock.now()
        check_proof(presented, request.signature, now)
        self._check(known, presented, now)
        return VerifiedRenewal(
            request,
            presented,
            known.device.device_serial,
            known.is_exchanged(presented.csr_sha256),
        )

    def _sign(self, verified: VerifiedRenewal) -> "Future[Renewed]":
        """Make the certificate and the response; submit them to the writer."""
        request, presented = verified.request, verified.presented
        known = self._find(presented)
        if known is None:
            raise RenewalRefusedError(_UNKNOWN)
        device = known.device
        checked = self._maker.check(
            ProvisioningRequest(
                device.device_serial,
                device.device_family,
                csr=request.csr,
                key_encryption_public_key=request.key_encryption_public_key,
            )
        )
        now = self._database.clock.now()
        # Read again, and checked again in the transaction: none of this decides a race, but what is
        # certainly refused must not cost a signature.
        self._check(known, presented, now)
        self._check_keys(device, checked)
        is_new = not known.is_exchanged(presented.csr_sha256)
        if is_new:
            device = self._certify(device, checked, now)
        keys = (
            None
            if checked.recipient is None
            else self._maker.current_keys_of(device.table_assignments)
        )
        candidate = IssuedRenewal(
            presented=presented.certificate_serial,
            csr_sha256=presented.csr_sha256,
            supersede=request.supersede,
            device=device,
            is_new=is_new,
            recipient_fingerprint=checked.recipient_fingerprint,
            table_epochs=None if keys is None else keys.epochs,
            answer=self._answer(device, checked.recipient, keys),
        )
        return self._provisioner.writer.submit(candidate, current_request())

    def _find(self, presented: PresentedCertificate) -> RegisteredCertificate | None:
        def read() -> RegisteredCertificate | None:
            with self._database.read(QUICK_SECONDS) as connection:
                return find_certificate(connection, presented.certificate_serial)

        return retry(read)

    def _check(
        self, known: RegisteredCertificate, presented: PresentedCertificate, now: datetime
    ) -> None:
        refusal = find_refusal(known, presented.csr_sha256, now, self._grace)
        if refusal is not None:
            raise refusal

    def _check_keys(self, device: Device, checked: CheckedRequest) -> None:
        def read() -> BirthmarkError | None:
            with self._database.read(QUICK_SECONDS) as connection:
                # Before the signature: another process may have changed what is signed and given.
                self._maker.follow_changes(connection)
                return find_key_refusal(
                    connection,
                    device.device_serial,
                    checked.public_key_fingerprint,
                    checked.recipient_fingerprint,
                )

        refusal = retry(read)
        if refusal is not None:
            raise refusal

    def _certify(self, device: Device, checked: CheckedRequest, now: datetime) -> Device:
        issuer = self._maker.issuers.active
        certificate = self._maker.issue_certificate(checked, issuer, now)
        return replace(
            device,
            device_certificate=certificate.public_bytes(Encoding.PEM).decode(),
            certificate_serial=f"{certificate.serial_number:x}",
            device_public_key=checked.public_key.public_bytes(
                Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
            ).decode(),
            public_key_fingerprint=checked.public_key_fingerprint,
            certificate_expires_at=certificate.not_valid_after_utc,
            certificate_issuer=issuer.name,
        )

    def _answer(
        self, device: Device, recipient: KeyEncryptionKey | None, keys: DeviceKeys | None
    ) -> Renewed:
        """Return the response for the present certificate of a device.

        The NUC hash is not in it: the authority knows only its HMAC.
        """
        sealed = None
        if recipient is not None and keys is not None:
            sealed = self._maker.seal(device, recipient, {"table_keys": keys.table_keys})
        return Renewed(
            device_certificate=device.device_certificate,
            certificate_chain=self._maker.chain_of(device),
            table_assignments=device.table_assignments,
            # The registration of a new certificate sets the time.
            renewed_at=device.certificate_renewed_at or self._database.clock.now(),
            sealed_secrets=sealed,
        )


# The first type that fits counts.
_OUTCOMES: tuple[tuple[tuple[type[BirthmarkError], ...], RenewalOutcome], ...] = (
    ((DeviceNotActiveError,), RenewalOutcome.NOT_ACTIVE),
    ((RenewalTimeRefusedError,), RenewalOutcome.WRONG_TIME),
    ((RenewalRefusedError,), RenewalOutcome.UNPROVEN),
    ((RateLimitedError,), RenewalOutcome.RATE_LIMITED),
    ((ConflictError, RenewalOutdatedError), RenewalOutcome.CONFLICT),
    ((PoolFullError, ShuttingDownError), RenewalOutcome.OVERLOADED),
    ((DatabaseUnavailableError, *OUTDATED), RenewalOutcome.UNAVAILABLE),
    ((BirthmarkError,), RenewalOutcome.REFUSED),
)


def _classify(error: BirthmarkError) -> RenewalOutcome:
    return next(outcome for types, outcome in _OUTCOMES if isinstance(error, types))
