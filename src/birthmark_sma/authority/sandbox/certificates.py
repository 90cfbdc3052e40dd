"""Device certificates of a sandbox, dated in the past or the future if a test asks for it.

`web.sandbox.fault_injection` sets the offset for a request; the provisioner issues the certificate.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta

from cryptography import x509

from birthmark_sma.authority.provisioning.issuance import CandidateMaker, CheckedRequest
from birthmark_sma.pki import profiles

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


class SandboxCandidateMaker(CandidateMaker):
    """Issues device certificates with a sandbox's names, at the time that `shifted_clock` set."""

    profile = profiles.SANDBOX_DEVICE

    def _issue(self, checked: CheckedRequest, now: datetime) -> x509.Certificate:
        return super()._issue(checked, now + _AHEAD.get())
