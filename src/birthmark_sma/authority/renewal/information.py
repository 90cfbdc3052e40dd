"""Find the renewal window of a certificate, as its device and the operator see it.

Called by web/api/renewal/endpoints.py and the dashboard. A certificate that was replaced keeps its
own window.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from sqlalchemy import Connection

from birthmark_sma.authority.ca import store as ca_store
from birthmark_sma.authority.devices.store import Device
from birthmark_sma.authority.provisioning.replacement import read_not_before
from birthmark_sma.authority.renewal import orders
from birthmark_sma.authority.renewal.registration import find_certificate
from birthmark_sma.authority.renewal.windows import (
    OrderTime,
    RenewalTarget,
    Window,
    next_check,
    pull_forward,
    usual_window,
)
from birthmark_sma.errors import UnknownCertificateError


class RenewalInformation(NamedTuple):
    """The window of a certificate, and the time after which the device asks again."""

    window: Window
    next_check: timedelta


def find_information(
    connection: Connection, key_identifier: bytes, serial_number: int
) -> RenewalInformation:
    """Return the information about the certificate with this id (RFC 9773, section 4).

    `key_identifier` is that of the issuer's key. Raises UnknownCertificateError.
    """
    certificate_serial = f"{serial_number:x}"
    found = find_certificate(connection, certificate_serial)
    if found is None:
        raise UnknownCertificateError
    earlier = found.earlier
    known = found.device if earlier is None else earlier
    if _key_identifier(connection, known.certificate_issuer) != key_identifier:
        raise UnknownCertificateError
    not_before = (
        read_not_before(found.device.device_certificate) if earlier is None else earlier.not_before
    )
    if not_before is None or found.expires_at is None:  # an operator's SQL put it there
        raise UnknownCertificateError
    usual = usual_window(certificate_serial, not_before, found.expires_at)
    if earlier is not None:
        return RenewalInformation(usual, next_check([]))
    naming = find_orders(found.device, [order.time for order in orders.list_open(connection)])
    return RenewalInformation(pull_forward(usual, certificate_serial, naming), next_check(naming))


def find_window(connection: Connection, device: Device) -> Window | None:
    """Return the window of a device's current certificate; None for one that cannot be read."""
    not_before, not_after = (
        read_not_before(device.device_certificate),
        device.certificate_expires_at,
    )
    if not_before is None or not_after is None:
        return None
    usual = usual_window(device.certificate_serial, not_before, not_after)
    naming = find_orders(device, [order.time for order in orders.list_open(connection)])
    return pull_forward(usual, device.certificate_serial, naming)


def find_orders(device: Device, open_orders: Sequence[OrderTime]) -> list[OrderTime]:
    """Return those of the open orders that name the device's current certificate."""
    target = RenewalTarget(
        certificate_issuer=device.certificate_issuer,
        device_family=device.device_family,
        app_version=device.app_version,
        table_assignments=device.table_assignments,
        status=device.status,
        issued_at=_issued_at(device),
    )
    return [order for order in open_orders if order.matches(target)]


def _issued_at(device: Device) -> datetime:
    return device.certificate_renewed_at or device.provisioned_at


def _key_identifier(connection: Connection, issuer: str) -> bytes | None:
    """Return the key identifier of a CA, by its name in `ca_certificates`."""
    ca = ca_store.find_ca(connection, issuer)
    if ca is None:
        return None
    extensions = ca.load().extensions
    return extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
