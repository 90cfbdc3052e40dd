"""The time at which a certificate should be renewed (RFC 9773). PURE.

The windows of a fleet are spread by a hash of the certificate's serial number, so that devices that
were provisioned on the same day do not renew on the same day. A renewal order pulls a window
forward. The same certificate always gets the same window.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from birthmark_sma.protocol.verdict import DeviceStatus

_LONGEST = timedelta(days=30)
_SHORTEST = timedelta(seconds=1)
"""Times are sent in whole seconds, and a window must not be empty."""
_SHARES = 24
"""A window is at most this part of the validity, or of the time of an order."""
_EARLIEST, _LATEST = (2, 3), (5, 6)  # fractions of the validity, between which a window starts

USUAL_CHECK = timedelta(hours=6)
"""The time after which a device asks for its window again."""
_SOONEST_CHECK = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Window:
    """The time in which a device should renew its certificate, at a random moment of it."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class RenewalTarget:
    """The fields of a device and its current certificate that a renewal order may name."""

    certificate_issuer: str
    device_family: str
    app_version: str | None
    table_assignments: tuple[int, ...]
    status: DeviceStatus
    issued_at: datetime
    """The time at which the certificate was issued, in a provisioning or a renewal."""


@dataclass(frozen=True, slots=True)
class RenewalCriteria:
    """The devices of a renewal order: those that meet every criterion that is not None."""

    certificate_issuer: str | None = None
    device_family: str | None = None
    app_version: str | None = None
    table_id: int | None = None


@dataclass(frozen=True, slots=True)
class OrderTime:
    """The time of an order, within which the devices that it names renew, and these devices."""

    criteria: RenewalCriteria
    opened_at: datetime
    ends_at: datetime

    def matches(self, target: RenewalTarget) -> bool:
        """Return True if the order names this certificate. It was issued before the order began."""
        wanted = self.criteria
        return (
            target.status is DeviceStatus.ACTIVE
            and target.issued_at < self.opened_at
            and wanted.certificate_issuer in {None, target.certificate_issuer}
            and wanted.device_family in {None, target.device_family}
            and wanted.app_version in {None, target.app_version}
            and (wanted.table_id is None or wanted.table_id in target.table_assignments)
        )

    def share(self, certificate_serial: str) -> Window:
        """Return the part of the order's time in which this certificate should be renewed."""
        length = (self.ends_at - self.opened_at) / _SHARES
        latest = self.ends_at - length
        return _spread(certificate_serial, self.opened_at, latest, length)


def usual_window(certificate_serial: str, not_before: datetime, not_after: datetime) -> Window:
    """Return the window of a certificate if no order names it.

    It takes 30 days, or 1/24 of the validity if that is less, and starts between 2/3 and 5/6 of it.
    `certificate_serial` is lower-case hex.
    """
    validity = not_after - not_before
    earliest, latest = (
        not_before + validity * part // whole for part, whole in (_EARLIEST, _LATEST)
    )
    return _spread(certificate_serial, earliest, latest, min(_LONGEST, validity / _SHARES))


def pull_forward(usual: Window, certificate_serial: str, orders: list[OrderTime]) -> Window:
    """Return the earliest of the usual window and the certificate's shares of these orders."""
    windows = [usual, *(order.share(certificate_serial) for order in orders)]
    return min(windows, key=lambda window: window.start)


def next_check(orders: list[OrderTime]) -> timedelta:
    """Return the time after which a device of these open orders asks for its window again."""
    shares = [(order.ends_at - order.opened_at) / _SHARES for order in orders]
    return min(USUAL_CHECK, max(_SOONEST_CHECK, min(shares, default=USUAL_CHECK)))


def _spread(
    certificate_serial: str, earliest: datetime, latest: datetime, length: timedelta
) -> Window:
    """Return a window that starts between two times, as a hash of the serial number decides."""
    digest = hashlib.sha256(certificate_serial.encode("ascii")).digest()
    # Whole seconds: they are what clients show, and a device needs no more.
    seconds = int((latest - earliest).total_seconds())
    offset = seconds * int.from_bytes(digest[:8], "big") >> 64
    start = (earliest + timedelta(seconds=offset)).replace(microsecond=0)
    return Window(start, start + max(length, _SHORTEST))
