"""The names in certificates: what a serial may be, how it is written, and how it is read back."""

import re
import sys
import unicodedata

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark_sma.errors import DeviceSerialRefusedError
from birthmark_sma.pki.names import (
    DEVICE_URN_PREFIX,
    INTERMEDIATE_COMMON_NAME,
    MAX_SERIAL_CHARACTERS,
    ROOT_COMMON_NAME,
    check_device_serial,
    device_serial_of,
    device_urn,
    distinguished_name,
    fold,
    is_host_name,
)
from tests.support.pki.chains import NOT_A_CA, ca, device_key, hand_made

# RFC 8141, section 2: "urn" ":" NID ":" NSS, where the NSS is of RFC 3986's pchar and "/".
URN = re.compile(
    r"urn:[A-Za-z0-9][A-Za-z0-9-]{0,30}[A-Za-z0-9]:"
    r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})"
    r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*"
)

printable_serials = st.text(
    st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1, max_size=64
).filter(lambda serial: serial == serial.strip(" \u2800") and fold(serial) != "")


@pytest.mark.parametrize(
    "device_serial",
    [
        "x",
        "RaspberryPi-Prototype-001",
        "a camera",
        "two  blanks",
        "%41%",
        "Zoë",
        "東京",
        "📷",
        "a" * 64,
        "é" * 64,
        "📷" * 64,
    ],
)
def test_printable_serials_are_accepted(device_serial: str) -> None:
    """1 to 64 printable characters of any script, counted as characters and not as bytes."""
    check_device_serial(device_serial)


@pytest.mark.parametrize("device_serial", ["", "a" * 65, "é" * 65, "a" * 10**6])
def test_a_serial_of_another_length_is_refused(device_serial: str) -> None:
    """X.520's upper bound for a common name is 64 characters."""
    with pytest.raises(DeviceSerialRefusedError, match=f"not {len(device_serial)}"):
        check_device_serial(device_serial)


@pytest.mark.parametrize(
    "code_point",
    [
        *(0x00, 0x09, 0x0A, 0x0D, 0x1B, 0x7F, 0x85, 0xA0),
        *(0x200B, 0x2028, 0x202E, 0xD800, 0xDFFF, 0xE000, 0xFEFF, 0xFFFF),
    ],
    ids=hex,
)
@pytest.mark.parametrize("place", ["{}", "{}x", "x{}", "x{}y"])
def test_a_serial_with_an_unprintable_character_is_refused(code_point: int, place: str) -> None:
    """Threat 21: NUL, line breaks, lone surrogates and what turns text around stay outside."""
    with pytest.raises(DeviceSerialRefusedError, match="printable"):
        check_device_serial(place.format(chr(code_point)))


@pytest.mark.parametrize(
    ("device_serial", "named"),
    [
        ("camera\u00a01", "Character 7 is U+00A0 (NO-BREAK SPACE)."),
        ("camera-1\u200b", "Character 9 is U+200B (ZERO WIDTH SPACE)."),
        ("\ncamera-1", "Character 1 is U+000A (control)."),
        ("camera\ue000", "Character 7 is U+E000 (no name)."),
    ],
)
def test_the_unprintable_character_is_named(device_serial: str, named: str) -> None:
    """Most of them are invisible, and a no-break space looks like a space."""
    with pytest.raises(DeviceSerialRefusedError) as refused:
        check_device_serial(device_serial)
    assert str(refused.value) == f"A device serial has printable characters only. {named}"


@pytest.mark.parametrize(
    ("device_serial", "urn"),
    [
        ("camera-7._~", "urn:birthmark:device:camera-7._~"),
        ("a b", "urn:birthmark:device:a%20b"),
        ("100%", "urn:birthmark:device:100%25"),
        ("%41", "urn:birthmark:device:%2541"),
        ("a/b?c#d", "urn:birthmark:device:a%2Fb%3Fc%23d"),
        ("é", "urn:birthmark:device:%C3%A9"),
        ("📷", "urn:birthmark:device:%F0%9F%93%B7"),
    ],
)
def test_the_urn_of_a_serial(device_serial: str, urn: str) -> None:
    """Whatever is not unreserved in RFC 3986 is percent-encoded as UTF-8."""
    assert device_urn(device_serial) == urn


@given(printable_serials)
@example("/")
@example("%")
def test_a_urn_is_a_urn(device_serial: str) -> None:
    """RFC 8141's syntax holds for every serial, and no serial adds a component to it."""
    check_device_serial(device_serial)
    assert URN.fullmatch(device_urn(device_serial))


@given(st.lists(printable_serials, unique=True, min_size=2, max_size=2))
def test_two_serials_never_share_a_urn(device_serials: list[str]) -> None:
    """The encoding loses nothing."""
    first, second = device_serials
    assert device_urn(first) != device_urn(second)


@pytest.mark.parametrize("common_name", [ROOT_COMMON_NAME, INTERMEDIATE_COMMON_NAME, "Zoë's"])
def test_the_distinguished_name(common_name: str) -> None:
    """The contract's name, from the country down to the common name."""
    name = distinguished_name(common_name)
    assert [(attribute.oid, attribute.value) for attribute in name] == [
        (NameOID.COUNTRY_NAME, "US"),
        (NameOID.STATE_OR_PROVINCE_NAME, "Oregon"),
        (NameOID.ORGANIZATION_NAME, "Birthmark Simulated Manufacturer"),
        (NameOID.COMMON_NAME, common_name),
    ]


def test_the_names_of_the_authority() -> None:
    """Root and intermediate are named as the contract names them."""
    assert ROOT_COMMON_NAME == "Simulated Mfg Root CA"
    assert INTERMEDIATE_COMMON_NAME == "Simulated Mfg Intermediate CA"


@pytest.mark.parametrize("character", ["a", "é", "東", "📷"])
def test_a_common_name_has_up_to_64_characters(character: str) -> None:
    """The bound counts characters: 64 of any script fit, whatever their length in UTF-8."""
    longest = character * MAX_SERIAL_CHARACTERS
    (attribute,) = distinguished_name(longest).get_attributes_for_oid(NameOID.COMMON_NAME)
    assert attribute.value == longest


@pytest.mark.parametrize(
    "text",
    [
        "camera.example.org",
        "camera-7.example.org",
        "7.example.org",
        "a1.b2.example.org",
        "CAMERA.Example.ORG",
        f"{'a' * 59}.org",
    ],
)
def test_host_names(text: str) -> None:
    """Letters, digits and inner hyphens, in labels divided by dots."""
    assert is_host_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a b",
        "a_b.example.org",
        "-a.example.org",
        "a-.example.org",
        "a..example.org",
        ".example.org",
        "example.org.",
        "*.example.org",
        "a@example.org",
        "a/b",
        "a:80",
        "10.0.0.1",
        "example.123",
        "zoë.example.org",
        "٣.example.org",
        "camera.example.org\n",
        "xn--zo-kka.example.org",
        "ab--c.example.org",
        f"{'a' * 64}.org",
        "\uff21\uff22.example.org",
        ".".join(["abcdefg"] * 32),
    ],
)
def test_what_is_no_host_name(text: str) -> None:
    """Threat 2: none of these may stand in a dNSName."""
    assert not is_host_name(text)


def certificate_with(*alternative_names: x509.GeneralName) -> x509.Certificate:
    """Sign a certificate with these alternative names only."""
    return hand_made(
        device_key("ec-p256").public_key(),
        "another name",
        NOT_A_CA,
        issuer=ca().intermediate,
        signer=ca().signer,
        alternative_names=alternative_names,
    )


@pytest.mark.parametrize(
    "alternative_names",
    [
        [x509.DNSName("camera.example.org")],
        [x509.UniformResourceIdentifier("https://example.org/urn:birthmark:device:camera")],
        [x509.UniformResourceIdentifier("urn:another:device:camera")],
        [x509.DNSName(f"{DEVICE_URN_PREFIX}camera")],
    ],
)
def test_a_certificate_without_the_urn_names_no_device(
    alternative_names: list[x509.GeneralName],
) -> None:
    """Only the URN names a device: neither a dNSName nor the common name does."""
    assert device_serial_of(certificate_with(*alternative_names)) is None


def test_a_certificate_of_an_authority_names_no_device() -> None:
    """A certificate without alternative names is read without an error."""
    assert device_serial_of(ca().intermediate) is None
    assert device_serial_of(ca().root) is None


def test_the_urn_is_found_among_other_names() -> None:
    """The order of alternative names has no meaning."""
    certificate = certificate_with(
        x509.DNSName("camera.example.org"),
        x509.UniformResourceIdentifier("https://example.org/"),
        x509.UniformResourceIdentifier(device_urn("a camera")),
    )
    assert device_serial_of(certificate) == "a camera"


# --- names that are one name


ONE_NAME = {
    "case": ("Cam-1", "cam-1"),
    "capitals": ("Cam-1", "CAM-1"),
    "sharp s": ("Straße", "STRASSE"),
    "composed": ("caf\u00e9", "cafe\u0301"),
    "full width": ("Cam-1", "\uff23\uff41\uff4d\uff0d\uff11"),
    "ligature": ("ﬁlm", "film"),
    "blanks": ("a  b", "a b"),
    "Braille's blank": ("a\u2800b", "a b"),
    "variation selector": ("cam\ufe0f", "cam"),
    "Hangul filler": ("cam\u3164", "cam"),
    "combining grapheme joiner": ("c\u034fam", "cam"),
    "leading blank": (" cam", "cam"),
    "trailing blank": ("cam ", "cam"),
    "Kelvin": ("\u212a", "k"),
    "final sigma": ("ΟΔΟΣ", "οδος"),
    "iota subscript": ("\u1fb3", "\u0391\u0399"),
}


@pytest.mark.parametrize("name", ONE_NAME)
def test_one_name_folds_to_one_text(name: str) -> None:
    """Threat 40: people and RFC 5280, section 7.1, see no difference between these."""
    first, second = ONE_NAME[name]
    assert first != second
    assert fold(first) == fold(second)


@pytest.mark.parametrize(
    ("first", "second"), [("cam-1", "cam1"), ("cam", "cam."), ("a b", "ab"), ("é", "e")]
)
def test_other_names_stay_others(first: str, second: str) -> None:
    """Nothing that is seen is folded away."""
    assert fold(first) != fold(second)


@given(st.text())
@example("\u1fb3\u0345")
@example("\u0345\u0301a")
@example("\U000e0001 \u3164")
def test_folding_is_stable(text: str) -> None:
    """Threat 40: what is stored folds to itself, and no way of writing it escapes."""
    folded = fold(text)
    assert fold(folded) == folded
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert fold(unicodedata.normalize(form, text)) == folded
    assert "\t" not in folded


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_folds_as_all_else(text: str) -> None:
    """What is folded the short way comes out as the long way has it."""
    assert fold(f"{text}\u00e9") == fold(f"{text}e\u0301") == (fold(f"{text}x")[:-1] + "\u00e9")


@pytest.mark.parametrize("text", ["A" * 1_025, "a" + "\u0301\u0316" * 5_000])
def test_what_is_too_long_for_a_name_is_not_folded(text: str) -> None:
    """Marks out of order cost the square of their number: 0.2 s for those that a bundle holds."""
    assert fold(text) == text


def test_every_character_folds_to_a_fixed_point() -> None:
    """And no serial becomes too long for an index: PostgreSQL's takes 2,704 bytes of a text."""
    longest = 0
    for code_point in range(sys.maxunicode + 1):
        character = chr(code_point)
        if not character.isprintable():
            continue
        folded = fold(character)
        assert fold(folded) == folded, hex(code_point)
        longest = max(longest, len(folded.encode()))
    assert longest * MAX_SERIAL_CHARACTERS < 2_500


@pytest.mark.parametrize(
    "device_serial", [" ", " x", "x ", "\u2800", "x\u2800", "\u2800x", "  x  "]
)
def test_white_space_at_an_end_is_refused(device_serial: str) -> None:
    """Threat 40: nobody sees whether it is there."""
    with pytest.raises(DeviceSerialRefusedError, match="white space at either end"):
        check_device_serial(device_serial)


@pytest.mark.parametrize("device_serial", ["\u3164", "\ufe0f", "\u115f\u1160", "\u034f"])
def test_a_serial_that_nobody_sees_is_refused(device_serial: str) -> None:
    """Threat 40: such a device would have no name at all."""
    with pytest.raises(DeviceSerialRefusedError, match="is seen"):
        check_device_serial(device_serial)


@pytest.mark.parametrize(
    "device_serial",
    [
        ROOT_COMMON_NAME,
        INTERMEDIATE_COMMON_NAME.upper(),
        f"{ROOT_COMMON_NAME}\ufe0f",
        "Simulated  Mfg  Root  CA",
        "".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in INTERMEDIATE_COMMON_NAME),
        f"sandbox {ROOT_COMMON_NAME}",
        f"{ROOT_COMMON_NAME} 2",
        f"{INTERMEDIATE_COMMON_NAME.lower()}  017",
    ],
)
def test_the_name_of_a_ca_is_refused(device_serial: str) -> None:
    """Threat 40: however it is spelled."""
    with pytest.raises(DeviceSerialRefusedError, match="name of a CA"):
        check_device_serial(device_serial)
