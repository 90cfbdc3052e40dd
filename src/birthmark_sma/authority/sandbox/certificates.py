"""Devices of a sandbox: certified as at another time, where that was asked for."""

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
    """Let certificates be dated so far ahead, or behind where that is negative, in this block.

    It holds for the request under way and no other: the provisioner takes its context along into
    the thread that signs.
    """
    before = _AHEAD.set(offset)
    try:
        yield
    finally:
        _AHEAD.reset(before)


class SandboxCandidateMaker(CandidateMaker):
    """Certifies devices under the names of a sandbox, at the time that their script says."""

    profile = profiles.SANDBOX_DEVICE

    def _issue(self, checked: CheckedRequest, now: datetime) -> x509.Certificate:
        return super()._issue(checked, now + _AHEAD.get())
