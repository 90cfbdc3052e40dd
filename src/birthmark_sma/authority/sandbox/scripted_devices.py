"""Devices of a sandbox: certified as at another time, where that was asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from cryptography import x509

from birthmark_sma.authority.candidates import CandidateMaker, Checked
from birthmark_sma.pki import profiles


class ClockTravel:
    """For which serials the clock of the certificates stands at another time.

    Owned by nobody in particular: a serial is put in before its request goes on, and taken out
    behind it.
    """

    def __init__(self) -> None:
        self._offsets: dict[str, timedelta] = {}

    def offset_of(self, device_serial: str) -> timedelta:
        """Return how far ahead of the true time the clock is, or behind where that is negative."""
        return self._offsets.get(device_serial, timedelta())

    @contextmanager
    def set(self, device_serial: str, offset: timedelta) -> Iterator[None]:
        """Let the clock stand there for a serial until the end of the block."""
        self._offsets[device_serial] = offset
        try:
            yield
        finally:
            self._offsets.pop(device_serial, None)


class SandboxCandidateMaker(CandidateMaker):
    """Certifies devices under the names of a sandbox, at the time that their script says."""

    profile = profiles.SANDBOX_DEVICE
    travel: ClockTravel

    def _issue(self, checked: Checked, now: datetime) -> x509.Certificate:
        return super()._issue(checked, now + self.travel.offset_of(checked.request.device_serial))
