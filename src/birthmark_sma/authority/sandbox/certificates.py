"""Device certificates and CRLs of a sandbox, dated in the past or the future if a test asks for it.

`web.sandbox.fault_injection` asks for them. The CRLs that all others get are in
`ca.crl_publication`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta

from cryptography import x509

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.ca.issuers import Issuer
from birthmark_sma.authority.provisioning.issuance import CheckedRequest, DeviceIssuer
from birthmark_sma.pki import crl, profiles
from birthmark_sma.storage.engine import Database

_AHEAD: ContextVar[timedelta] = ContextVar("clock_ahead", default=timedelta())


@contextmanager
def shifted_clock(offset: timedelta) -> Iterator[None]:
    """Date the certificates that this block issues by `offset` from now; negative for the past.

    The offset is a context variable, so it affects the current request only. The provisioner copies
    the context into the thread that signs.
    """
    before = _AHEAD.set(offset)
    try:
        yield
    finally:
        _AHEAD.reset(before)


class SandboxDeviceIssuer(DeviceIssuer):
    """Issues device certificates with a sandbox's names, at the time that `shifted_clock` set."""

    profile = profiles.SANDBOX_DEVICE

    def issue_certificate(
        self, checked: CheckedRequest, issuer: Issuer, now: datetime
    ) -> x509.Certificate:
        """Sign a certificate, dated by `shifted_clock`."""
        return super().issue_certificate(checked, issuer, now + _AHEAD.get())


def crl_as_of(database: Database, issuer: Issuer, now: datetime) -> bytes:
    """Return a CRL (DER) of an issuer's revoked certificates, signed with the time `now`.

    The CRL is not stored.
    """
    with database.read() as connection:
        revoked = ca_store.list_revocations(connection, issuer.name)
    return crl.sign_crl(
        [
            crl.RevokedCertificate(
                int(r.certificate_serial, 16), r.revoked_at, r.revocation_reason, r.invalid_since
            )
            for r in revoked
        ],
        issuer=issuer.certificate,
        signer=issuer.signer,
        # CRL numbers must increase (RFC 5280 section 5.2.3), as milliseconds do.
        number=int(now.timestamp() * 1_000),
        this_update=now,
        next_update=now + crl.LIFETIME,
    )
