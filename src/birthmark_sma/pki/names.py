"""The names in certificates: distinguished names, and a device's own (RFC 5280, X.520).

A device serial is free text of 1..64 printable characters. Every certificate carries it as common
name and, percent-encoded, as a URN; only a serial that is a host name also becomes a dNSName, since
anything else there is malformed for every verifier.
"""

import re
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.x509.oid import NameOID

from birthmark_sma.errors import DeviceSerialRefusedError

MAX_SERIAL_CHARACTERS = 64
"""X.520's upper bound for a common name (ub-common-name)."""

DEVICE_URN_PREFIX = "urn:birthmark:device:"
ROOT_COMMON_NAME = "Simulated Mfg Root CA"
INTERMEDIATE_COMMON_NAME = "Simulated Mfg Intermediate CA"

_MAX_HOST_NAME_CHARACTERS = 253
# Letters, digits and hyphens, hyphens not at the ends: RFC 1034, section 3.5, and RFC 1123, 2.1.
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_RESERVED_LABEL = re.compile(r"..--")  # RFC 5891, section 4.2.3.1: "xn--" and its kin need decoding


def check_device_serial(device_serial: str) -> None:
    """Raise DeviceSerialRefusedError unless the serial is 1..64 printable characters."""
    if not 1 <= len(device_serial) <= MAX_SERIAL_CHARACTERS:
        raise DeviceSerialRefusedError(
            f"A device serial has 1 to {MAX_SERIAL_CHARACTERS} characters,"
            f" not {len(device_serial)}."
        )
    if not device_serial.isprintable():
        raise DeviceSerialRefusedError(
            "A device serial has printable characters only: no control characters or line breaks."
        )


def distinguished_name(common_name: str) -> x509.Name:
    """Return C=US, ST=Oregon, O=Birthmark Simulated Manufacturer, CN=`common_name`."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "Oregon"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Birthmark Simulated Manufacturer"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def device_urn(device_serial: str) -> str:
    """Return `urn:birthmark:device:` and the serial, percent-encoded as UTF-8 (RFC 3986, 2.1)."""
    return DEVICE_URN_PREFIX + quote(device_serial, safe="")


def device_serial_of(certificate: x509.Certificate) -> str | None:
    """Return the device serial that a certificate's URN names, or None where it has none."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
        if uri.startswith(DEVICE_URN_PREFIX):
            return unquote(uri.removeprefix(DEVICE_URN_PREFIX))
    return None


def is_host_name(text: str) -> bool:
    """Say whether text may stand in a dNSName: LDH labels, the last one not all digits.

    RFC 1034, section 3.5, and RFC 1123, section 2.1. A single label is a host name.
    """
    labels = text.split(".")
    return (
        len(text) <= _MAX_HOST_NAME_CHARACTERS
        and all(_LABEL.fullmatch(label) for label in labels)
        and not any(_RESERVED_LABEL.match(label) for label in labels)
        and not labels[-1].isdigit()
    )
