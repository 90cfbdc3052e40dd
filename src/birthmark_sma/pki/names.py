"""Build and check the names in certificates (RFC 5280, X.520), and the device serials in them.

A device serial is free text of 1 to 64 printable characters. Every device certificate carries it as
the common name and, percent-encoded, as a URN. Only a serial that is a host name also becomes a
dNSName: any other text there is malformed for every verifier.
"""

import re
import unicodedata
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.x509.oid import NameOID

from birthmark_sma.errors import DeviceSerialRefusedError

MAX_SERIAL_CHARACTERS = 64
"""The upper bound of X.520 for a common name (ub-common-name)."""

DEVICE_URN_PREFIX = "urn:birthmark:device:"
RECIPIENT_KEY_URN_PREFIX = "urn:birthmark:recipient-key:"
ROOT_COMMON_NAME = "Simulated Mfg Root CA"
INTERMEDIATE_COMMON_NAME = "Simulated Mfg Intermediate CA"
OCSP_RESPONDER_COMMON_NAME = "Simulated Mfg OCSP Responder"
ORGANIZATION = "Birthmark Simulated Manufacturer"

SANDBOX_ROOT_COMMON_NAME = f"SANDBOX {ROOT_COMMON_NAME}"
SANDBOX_INTERMEDIATE_COMMON_NAME = f"SANDBOX {INTERMEDIATE_COMMON_NAME}"
SANDBOX_OCSP_RESPONDER_COMMON_NAME = f"SANDBOX {OCSP_RESPONDER_COMMON_NAME}"
SANDBOX_ORGANIZATION = f"SANDBOX {ORGANIZATION}"
"""The organization name of a sandbox and its devices. It distinguishes their certificates."""

# X.520 bounds a common name in characters. The library counts the bytes of the encoding instead,
# and refuses or warns about 64 non-ASCII characters. `check_device_serial` enforces the bound.
warnings.filterwarnings("ignore", message="Attribute's length must be", category=UserWarning)

_MAX_FOLDED_CHARACTERS = 1_024
_MAX_HOST_NAME_CHARACTERS = 253
# Letters, digits and hyphens, without a hyphen at either end (RFC 1034, section 3.5; RFC 1123,
# section 2.1).
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
_TOP_LEVEL = re.compile(r"[A-Za-z]{2,63}", re.ASCII)
_CA_NUMBER = re.compile(r" [0-9]+\Z")  # of the later CAs: "Simulated Mfg Root CA 2"
_RESERVED_LABEL = re.compile(r"..--")  # RFC 5891, section 4.2.3.1: "xn--" and similar


def check_device_serial(device_serial: str) -> None:
    """Raise DeviceSerialRefusedError unless the text is a valid device serial.

    A valid serial has 1 to 64 printable characters, starts and ends with a visible one, and is not
    the name of a CA or of its OCSP responder.
    """
    if not 1 <= len(device_serial) <= MAX_SERIAL_CHARACTERS:
        raise DeviceSerialRefusedError(
            f"A device serial has 1 to {MAX_SERIAL_CHARACTERS} characters,"
            f" not {len(device_serial)}."
        )
    if not device_serial.isprintable():
        raise DeviceSerialRefusedError(
            f"A device serial has printable characters only. {find_unprintable(device_serial)}."
        )
    with_blanks = device_serial.replace(_BLANK_BRAILLE, " ")
    if with_blanks != with_blanks.strip():
        raise DeviceSerialRefusedError("A device serial has no white space at either end.")
    folded = fold(device_serial)
    if not folded:
        raise DeviceSerialRefusedError("A device serial has at least one character that is seen.")
    if _CA_NUMBER.sub("", folded) in _ca_names():
        raise DeviceSerialRefusedError("This is the name of a CA, and so of no device.")


def find_unprintable(text: str) -> str:
    """Return a sentence, without its full stop, that names the first unprintable character.

    Many of them are invisible, such as a no-break space (U+00A0), or a zero width space (U+200B) of
    a copied text. So the sentence gives the character's place, code point and Unicode name.
    """
    place, found = next((at, each) for at, each in enumerate(text, 1) if not each.isprintable())
    name = unicodedata.name(found, "control" if unicodedata.category(found) == "Cc" else "no name")
    return f"Character {place} is U+{ord(found):04X} ({name})"


def fold(name: str) -> str:
    """Normalise a name: names that RFC 5280, section 7.1, treats as equal give the same text.

    The result ignores case, the composition of letters, the amount of white space, and invisible
    characters. It is Unicode's NFKC_Casefold (The Unicode Standard, section 3.13, D147), with white
    space as in RFC 4518, section 2.6.1. Folding the result again changes nothing.

    A text of more than 1,024 characters is returned unchanged. It cannot be a name here, and
    sorting combining marks takes quadratic time: 0.3 s for those in one bundle.
    """
    if len(name) > _MAX_FOLDED_CHARACTERS:
        return name
    if name.isascii():  # same result in a fifth of the time
        return " ".join(name.casefold().split())
    # One pass can produce characters that fold once more, so repeat it until nothing changes.
    folded = _fold_once(name)
    while (again := _fold_once(folded)) != folded:
        folded = again
    return folded


def same_name(one: x509.Name, other: x509.Name) -> bool:
    """Return True if two names are equal under RFC 5280, section 7.1.

    The comparison ignores the string type (UTF8String, PrintableString and so on), and all that
    `fold` ignores. The cryptography library compares bytes, and so refuses names that OpenSSL
    accepts.

    Raises ValueError or TypeError if the library cannot read a name.
    """
    return _folded(one) == _folded(other)


def _folded(name: x509.Name) -> list[list[tuple[str, str | bytes]]]:
    """Return the RDNs in order, normalised. An RDN is a set, so its attributes are sorted."""
    return [
        sorted(
            # A bit string is compared by its bits, without normalisation.
            (
                (
                    each.oid.dotted_string,
                    each.value if isinstance(each.value, bytes) else fold(each.value),
                )
                for each in rdn
            ),
            key=lambda pair: (pair[0], str(pair[1])),
        )
        for rdn in name.rdns
    ]


def _fold_once(name: str) -> str:
    text = unicodedata.normalize("NFD", name).casefold()
    seen = "".join(each for each in text if not _is_default_ignorable(each))
    normal = unicodedata.normalize("NFKC", seen.replace(_BLANK_BRAILLE, " "))
    return " ".join(normal.split())


def _is_default_ignorable(character: str) -> bool:
    place = bisect_right(_DEFAULT_IGNORABLE_FIRST, ord(character)) - 1
    return place >= 0 and ord(character) <= _DEFAULT_IGNORABLE[place][1]


_BLANK_BRAILLE = "\u2800"
"""A character that looks like a blank, but that Unicode does not classify as white space."""

# Default_Ignorable_Code_Point from DerivedCoreProperties.txt of Unicode 16.0. Python's unicodedata
# lacks this property.
_DEFAULT_IGNORABLE = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
_DEFAULT_IGNORABLE_FIRST = [first for first, _ in _DEFAULT_IGNORABLE]


@cache
def _ca_names() -> frozenset[str]:
    return frozenset(
        fold(name)
        for name in (
            ROOT_COMMON_NAME,
            INTERMEDIATE_COMMON_NAME,
            OCSP_RESPONDER_COMMON_NAME,
            SANDBOX_ROOT_COMMON_NAME,
            SANDBOX_INTERMEDIATE_COMMON_NAME,
            SANDBOX_OCSP_RESPONDER_COMMON_NAME,
        )
    )


def distinguished_name(common_name: str, organization: str = ORGANIZATION) -> x509.Name:
    """Return C=US, ST=Oregon, O=Birthmark Simulated Manufacturer, CN=`common_name`."""
    return x509.Name([*_manufacturer(organization), _common_name(common_name)])


def requested_subject(device_serial: str) -> x509.Name:
    """Return the subject for the CSR of a device: CN=`device_serial`."""
    return x509.Name([_common_name(device_serial)])


def _common_name(name: str) -> x509.RelativeDistinguishedName:
    """Return the RDN of a common name, without the library's length check in bytes (see above)."""
    return x509.RelativeDistinguishedName(
        [x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=False)]
    )


def is_of_sandbox(name: x509.Name) -> bool:
    """Return True if the name belongs to a sandbox or one of its devices."""
    organizations = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return any(each.value == SANDBOX_ORGANIZATION for each in organizations)


@cache
def _manufacturer(organization: str) -> Sequence[x509.RelativeDistinguishedName]:
    """Return the RDNs before the common name. There are two variants, so they are cached."""
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
    """Return the subjectAltName of a device: its URN, and its serial if that is a host name."""
    alternatives: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(device_urn(device_serial))
    ]
    if is_host_name(device_serial):
        alternatives.append(x509.DNSName(device_serial))
    return x509.SubjectAlternativeName(alternatives)


def device_serial_of(certificate: x509.Certificate) -> str | None:
    """Return the device serial from a certificate's URN, or None unless there is exactly one URN.

    Raises ValueError if the certificate's extensions are malformed.
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
    # Accept only the canonical encoding of a serial, so that two different URNs never name one
    # device.
    return device_serial if device_serial and device_urn(device_serial) == urns[0] else None


def is_host_name(text: str) -> bool:
    """Return True if the text may be a dNSName: two or more LDH labels, the last one all letters.

    RFC 1034, section 3.5, and RFC 1123, section 2.1. A single label resolves only on a local
    network, and certificate linters refuse it.
    """
    labels = text.split(".")
    return (
        len(text) <= _MAX_HOST_NAME_CHARACTERS
        and len(labels) >= 2
        and all(_LABEL.fullmatch(label) for label in labels)
        and not any(_RESERVED_LABEL.match(label) for label in labels)
        and _TOP_LEVEL.fullmatch(labels[-1]) is not None
    )
