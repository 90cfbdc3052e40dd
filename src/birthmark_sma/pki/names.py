"""The names in certificates: distinguished names, and a device's own (RFC 5280, X.520).

A device serial is free text of 1..64 printable characters. Every certificate carries it as common
name and, percent-encoded, as a URN; only a serial that is a host name also becomes a dNSName, since
anything else there is malformed for every verifier.
"""

import re
import warnings
from collections.abc import Sequence
from functools import cache
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.x509.oid import NameOID

from birthmark_sma.errors import DeviceSerialRefusedError

MAX_SERIAL_CHARACTERS = 64
"""X.520's upper bound for a common name (ub-common-name)."""

DEVICE_URN_PREFIX = "urn:birthmark:device:"
ROOT_COMMON_NAME = "Simulated Mfg Root CA"
INTERMEDIATE_COMMON_NAME = "Simulated Mfg Intermediate CA"
ORGANIZATION = "Birthmark Simulated Manufacturer"

SANDBOX_ROOT_COMMON_NAME = f"SANDBOX {ROOT_COMMON_NAME}"
SANDBOX_INTERMEDIATE_COMMON_NAME = f"SANDBOX {INTERMEDIATE_COMMON_NAME}"
SANDBOX_ORGANIZATION = f"SANDBOX {ORGANIZATION}"
"""What a sandbox and all its devices bear, so that nobody takes their certificates for others."""

_CA_NAMES = {
    name.casefold()
    for name in (
        ROOT_COMMON_NAME,
        INTERMEDIATE_COMMON_NAME,
        SANDBOX_ROOT_COMMON_NAME,
        SANDBOX_INTERMEDIATE_COMMON_NAME,
    )
}

# X.520 bounds a common name in characters; the library counts the bytes of their encoding, and
# would refuse, or warn of, 64 characters beyond ASCII. `check_device_serial` holds the bound.
warnings.filterwarnings("ignore", message="Attribute's length must be", category=UserWarning)

_MAX_HOST_NAME_CHARACTERS = 253
# Letters, digits and hyphens, hyphens not at the ends: RFC 1034, section 3.5, and RFC 1123, 2.1.
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_TOP_LEVEL = re.compile(r"[A-Za-z]{2,63}", re.ASCII)
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
    # As names are compared: without regard to case and spaces (RFC 5280, section 7.1).
    if " ".join(device_serial.casefold().split()) in _CA_NAMES:
        raise DeviceSerialRefusedError("This is the name of a CA, and so of no device.")


def distinguished_name(common_name: str, organization: str = ORGANIZATION) -> x509.Name:
    """Return C=US, ST=Oregon, O=Birthmark Simulated Manufacturer, CN=`common_name`."""
    own = x509.NameAttribute(NameOID.COMMON_NAME, common_name, _validate=False)
    return x509.Name([*_manufacturer(organization), x509.RelativeDistinguishedName([own])])


def is_of_sandbox(name: x509.Name) -> bool:
    """Say whether a name is that of a sandbox or of one of its devices."""
    organizations = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return any(each.value == SANDBOX_ORGANIZATION for each in organizations)


@cache
def _manufacturer(organization: str) -> Sequence[x509.RelativeDistinguishedName]:
    """Return what comes before the common name: one of two, and made for every certificate."""
    return [
        x509.RelativeDistinguishedName([x509.NameAttribute(oid, value)])
        for oid, value in (
            (NameOID.COUNTRY_NAME, "US"),
            (NameOID.STATE_OR_PROVINCE_NAME, "Oregon"),
            (NameOID.ORGANIZATION_NAME, organization),
        )
    ]


def device_urn(device_serial: str) -> str:
    """Return `urn:birthmark:device:` and the serial, percent-encoded as UTF-8 (RFC 3986, 2.1)."""
    return DEVICE_URN_PREFIX + quote(device_serial, safe="")


def device_alternative_names(device_serial: str) -> x509.SubjectAlternativeName:
    """Return the alternative names of a device: its URN and, where it is one, its host name."""
    alternatives: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(device_urn(device_serial))
    ]
    if is_host_name(device_serial):
        alternatives.append(x509.DNSName(device_serial))
    return x509.SubjectAlternativeName(alternatives)


def device_serial_of(certificate: x509.Certificate) -> str | None:
    """Return the device serial that a certificate's one URN names, or None where none does.

    Raises ValueError where the certificate's extensions are malformed.
    """
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    uris = alternatives.value.get_values_for_type(x509.UniformResourceIdentifier)
    urns = [uri for uri in uris if uri.startswith(DEVICE_URN_PREFIX)]
    if len(urns) != 1:
        return None
    device_serial = unquote(urns[0].removeprefix(DEVICE_URN_PREFIX))
    # Only the one right spelling of a serial counts, so that two URNs never name one device.
    return device_serial if device_serial and device_urn(device_serial) == urns[0] else None


def is_host_name(text: str) -> bool:
    """Say whether text may stand in a dNSName: at least two LDH labels, the last one of letters.

    RFC 1034, section 3.5, and RFC 1123, section 2.1. A single label resolves nowhere but at home,
    and linters refuse it in a certificate.
    """
    labels = text.split(".")
    return (
        len(text) <= _MAX_HOST_NAME_CHARACTERS
        and len(labels) >= 2
        and all(_LABEL.fullmatch(label) for label in labels)
        and not any(_RESERVED_LABEL.match(label) for label in labels)
        and _TOP_LEVEL.fullmatch(labels[-1]) is not None
    )
