"""What `verify_path` accepts, and that it refuses everything else with PathRefusedError alone."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from birthmark_sma.errors import PathRefusedError
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer
from birthmark_sma.pki.path_validation import verify_path
from tests.support.pki.chains import (
    CLIENT_AUTH,
    DEVICE_SERIALS,
    NOT_A_CA,
    NOW,
    ca,
    device_key,
    hand_made,
    key_usage,
    sound_chain,
)

SERVER_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def leaf_with(
    *extensions: x509.ExtensionType, alternative_names: tuple[x509.GeneralName, ...] = ()
) -> x509.Certificate:
    """Let the intermediate sign a leaf that `issue` would never let it sign."""
    return hand_made(
        device_key("ec-p256").public_key(),
        "a camera",
        *extensions,
        issuer=ca().intermediate,
        signer=ca().signer,
        alternative_names=alternative_names,
    )


def verify(leaf: x509.Certificate) -> str:
    """Verify a leaf under the authority of these tests."""
    return verify_path(leaf, [ca().intermediate], root=ca().root, now=NOW)


@pytest.mark.parametrize("label", DEVICE_SERIALS)
def test_the_device_serial_is_returned(label: str) -> None:
    """A sound path gives the serial as it was provisioned, character for character."""
    assert verify(sound_chain(DEVICE_SERIALS[label]).leaf) == DEVICE_SERIALS[label]


def test_a_hand_made_leaf_of_the_right_profile_is_accepted() -> None:
    """The leaves of the tests below are refused for what they say, not for how they are made."""
    assert verify(leaf_with(NOT_A_CA, key_usage(ca=False), CLIENT_AUTH)) == "a camera"


def test_a_root_sent_along_proves_nothing() -> None:
    """The path ends below the root, which is pinned: another one makes it another path."""
    chain = sound_chain()
    foreign = ca(CaKeyType.EC_P384)
    for sent in ([ca().intermediate, ca().root], [ca().intermediate, foreign.root]):
        for pinned in (ca().root, foreign.root):
            with pytest.raises(PathRefusedError, match="does not chain to the trusted root"):
                verify_path(chain.leaf, sent, root=pinned, now=NOW)


def test_every_certificate_that_came_along_is_on_the_path() -> None:
    """A device under the root itself does not lend its validity to an intermediate beside it."""
    foreign = ca(CaKeyType.EC_P384)
    below_root = hand_made(
        device_key("ec-p256").public_key(),
        "a camera",
        NOT_A_CA,
        key_usage(ca=False),
        CLIENT_AUTH,
        issuer=ca().root,
        signer=ca().root_signer,
    )
    renamed = self_issued(ca().root.subject)
    for beside in ([ca().intermediate], [foreign.intermediate], [renamed], [ca().root]):
        with pytest.raises(PathRefusedError):
            verify_path(below_root, beside, root=ca().root, now=NOW)
    sent = [ca().intermediate, foreign.intermediate, ca().root]
    with pytest.raises(PathRefusedError):
        verify_path(sound_chain().leaf, sent, root=ca().root, now=NOW)


def self_issued(name: x509.Name) -> x509.Certificate:
    """A certificate that has the root's name twice, and another key."""
    key = ca(CaKeyType.EC_P384).signer
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key)
        .serial_number(8)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .sign(key.key, key.hash_algorithm)
    )


def test_certificates_in_the_wrong_order_are_told() -> None:
    """The sentence is for whoever builds a camera, and quotes nothing of the library."""
    with pytest.raises(PathRefusedError, match=r"wrong order: send the device's .* first"):
        verify_path(ca().intermediate, [sound_chain().leaf], root=ca().root, now=NOW)


# --- names in several spellings: RFC 5280, section 7.1


def spelt(name: x509.Name, change: Callable[[str], str], kind: _ASN1Type) -> x509.Name:
    """A name with other texts and another string type; the country stays as it is."""
    return x509.Name(
        [
            x509.RelativeDistinguishedName(
                [
                    each
                    if each.oid == NameOID.COUNTRY_NAME
                    else x509.NameAttribute(each.oid, change(str(each.value)), kind)
                    for each in rdn
                ]
            )
            for rdn in name.rdns
        ]
    )


def path_with(
    change: Callable[[str], str], kind: _ASN1Type = _ASN1Type.UTF8String
) -> tuple[x509.Certificate, x509.Certificate]:
    """A leaf and an intermediate, each of which spells its issuer's name in another way."""

    def reissue(certificate: x509.Certificate, signer: Signer) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(certificate.subject)
            .issuer_name(spelt(certificate.issuer, change, kind))
            .public_key(certificate.public_key())
            .serial_number(certificate.serial_number)
            .not_valid_before(certificate.not_valid_before_utc)
            .not_valid_after(certificate.not_valid_after_utc)
        )
        for each in certificate.extensions:
            builder = builder.add_extension(each.value, critical=each.critical)
        return builder.sign(signer.key, signer.hash_algorithm)

    return (
        reissue(sound_chain("a camera").leaf, ca().signer),
        reissue(ca().intermediate, ca().root_signer),
    )


SPELLINGS: dict[str, Callable[[], tuple[x509.Certificate, x509.Certificate]]] = {
    "case": lambda: path_with(str.upper),
    "string type": lambda: path_with(str, _ASN1Type.PrintableString),
    "wide string type": lambda: path_with(str, _ASN1Type.BMPString),
    "white space": lambda: path_with(lambda text: f" {text.replace(' ', '   ')} "),
    "compatible letters": lambda: path_with(lambda text: text.replace("M", "\uff2d")),
    "what is not seen": lambda: path_with(lambda text: text.replace("M", "\u200bM\u00ad")),
}


@pytest.mark.parametrize("make", SPELLINGS.values(), ids=SPELLINGS)
def test_a_name_may_be_spelt_in_several_ways(
    make: Callable[[], tuple[x509.Certificate, x509.Certificate]],
) -> None:
    """OpenSSL takes most of these, and so did only one of the two examples."""
    leaf, intermediate = make()
    assert leaf.issuer.public_bytes() != intermediate.subject.public_bytes()
    assert verify_path(leaf, [intermediate], root=ca().root, now=NOW) == "a camera"
    late = NOW + timedelta(days=731)
    foreign = ca(CaKeyType.EC_P384)
    for path, root, now in (
        ([intermediate], ca().root, late),
        ([intermediate], foreign.root, NOW),
        ([foreign.intermediate], ca().root, NOW),
    ):
        with pytest.raises(PathRefusedError):
            verify_path(leaf, path, root=root, now=now)


@pytest.mark.parametrize("which", [0, 1], ids=["leaf", "intermediate"])
def test_another_spelling_is_no_other_signature(which: int) -> None:
    """Neither signature can be left out where names are spelt in two ways."""
    path = [*path_with(str.upper)]
    der = bytearray(path[which].public_bytes(Encoding.DER))
    der[-1] ^= 1
    path[which] = x509.load_der_x509_certificate(bytes(der))
    with pytest.raises(PathRefusedError):
        verify_path(path[0], path[1:], root=ca().root, now=NOW)


@pytest.mark.parametrize(
    "change",
    [lambda text: text.replace("Simulated", "Simulate"), lambda text: text.replace(" ", "")],
    ids=["a letter less", "no white space"],
)
def test_another_name_is_another_issuer(change: Callable[[str], str]) -> None:
    leaf, intermediate = path_with(change)
    with pytest.raises(PathRefusedError, match="its issuer is '"):
        verify_path(leaf, [intermediate], root=ca().root, now=NOW)


def test_a_missing_intermediate_is_refused() -> None:
    """A leaf alone does not reach the root."""
    with pytest.raises(PathRefusedError):
        verify_path(sound_chain().leaf, [], root=ca().root, now=NOW)


@pytest.mark.parametrize("days", [-1, 731])
def test_the_time_is_the_callers(days: int) -> None:
    """Threat 3: before its beginning and after its end a leaf is refused."""
    chain = sound_chain()
    with pytest.raises(PathRefusedError, match="not valid at validation time"):
        verify_path(
            chain.leaf, chain.intermediates, root=chain.root, now=NOW + timedelta(days=days)
        )


def test_a_slow_clock_is_no_obstacle() -> None:
    """Threat 3: fifty minutes before it was issued, a certificate is valid already."""
    chain = sound_chain()
    early = NOW - timedelta(minutes=50)
    assert verify_path(chain.leaf, chain.intermediates, root=chain.root, now=early)


@pytest.mark.parametrize("which", ["root", "intermediate"])
def test_an_authority_is_no_device(which: str) -> None:
    """A CA's certificate is refused as a leaf."""
    leaf = {"root": ca().root, "intermediate": ca().intermediate}[which]
    with pytest.raises(PathRefusedError):
        verify(leaf)


A_CA = x509.BasicConstraints(ca=True, path_length=None)
ONLY_ENCIPHERMENT = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
ANY_PURPOSE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])


@pytest.mark.parametrize(
    "extensions",
    [
        (A_CA, key_usage(ca=False), CLIENT_AUTH),
        (NOT_A_CA, key_usage(ca=True), CLIENT_AUTH),
        (NOT_A_CA, ONLY_ENCIPHERMENT, CLIENT_AUTH),
        (NOT_A_CA, key_usage(ca=False), SERVER_AUTH),
        (NOT_A_CA, key_usage(ca=False), ANY_PURPOSE),
        (NOT_A_CA, key_usage(ca=False)),
    ],
    ids=["CA", "signs certificates", "may not sign", "for servers", "for anything", "no purpose"],
)
def test_a_leaf_of_another_profile_is_refused(extensions: tuple[x509.ExtensionType, ...]) -> None:
    """Step 2: a leaf is no CA, may sign, and says that it is for client authentication."""
    with pytest.raises(PathRefusedError):
        verify(leaf_with(*extensions))


@pytest.mark.parametrize(
    "alternative_name",
    [
        x509.DNSName("camera.example.org"),
        x509.UniformResourceIdentifier("urn:another:device:camera"),
        x509.UniformResourceIdentifier("https://example.org/urn:birthmark:device:camera"),
    ],
)
def test_a_leaf_that_names_no_device_is_refused(alternative_name: x509.GeneralName) -> None:
    """Step 3: whoever the path leads to, it must be a device."""
    leaf = leaf_with(
        NOT_A_CA, key_usage(ca=False), CLIENT_AUTH, alternative_names=(alternative_name,)
    )
    with pytest.raises(PathRefusedError, match="names no device"):
        verify(leaf)


@pytest.mark.parametrize(
    "oid",
    [
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.NAME_CONSTRAINTS,
    ],
)
def test_a_malformed_extension_is_refused(oid: x509.ObjectIdentifier) -> None:
    """Threat 15: what cannot be parsed is refused as a path, and no other error comes out."""
    sound = [NOT_A_CA, key_usage(ca=False), CLIENT_AUTH]
    kept = [extension for extension in sound if extension.oid != oid]
    with pytest.raises(PathRefusedError):
        verify(leaf_with(*kept, x509.UnrecognizedExtension(oid, b"\x30\x82\xff\xff\x00")))


def test_many_intermediates_are_refused_in_bounded_time() -> None:
    """A path of the right name and the wrong key, many times over, ends in a refusal."""
    foreign = [ca(key_type).intermediate for key_type in (CaKeyType.EC_P384,)] * 500
    with pytest.raises(PathRefusedError):
        verify_path(sound_chain().leaf, foreign, root=ca().root, now=NOW)
