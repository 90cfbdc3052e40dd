"""Generate certificate_chain_test.json: valid and invalid certification paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from birthmark_sma.pki import names
from birthmark_sma.pki.keys.ca_keys import Signer
from birthmark_sma.pki.keys.key_policy import DeviceKey
from birthmark_sma.pki.profiles import key_usage
from vectors.generator import seeded_keys
from vectors.generator.authorities import (
    CLIENT_AUTH,
    NOT_A_CA,
    NOW,
    SERVER_AUTH,
    SeededCa,
    SeededSigner,
    authority,
    device_certificate,
    hand_made,
    pem,
)
from vectors.generator.document import Case, Document, Group, Result

_NOTES = {
    "NotACa": "A certificate that issued another may not: no CA:TRUE, or past a pathlen.",
    "OtherRoot": "It chains to a root of the same name that is not the pinned one.",
    "Altered": "Something was changed after signing.",
    "Expired": "A certificate of the path has ended.",
    "LastSecond": "Validity includes both its ends (RFC 5280, section 4.1.2.5), but OpenSSL takes a"
    " certificate for expired in its last second.",
    "NotYetValid": "A certificate of the path begins later.",
    "Purpose": "The leaf is not for what a device does: clientAuth, digitalSignature, no CA.",
    "WeakKey": "The leaf's key is of a kind that no device has.",
    "NoSerial": "The leaf names no device: it has no URI urn:birthmark:device:...",
    "Incomplete": "The intermediate is missing.",
    "RootSentAlong": "The device sends a root along, which proves nothing.",
    "OtherSpelling": "An issuer's name has another case or string type than the subject that it"
    " names. RFC 5280, section 7.1, takes them for one name; verifiers that compare bytes do not.",
    "UrnSpelling": "The URN has not the one spelling of a serial, or the leaf has two URNs.",
    "OffThePath": "A certificate came along that is not the issuer of the one before it.",
}


_DEVICE = (NOT_A_CA, key_usage(ca=False), CLIENT_AUTH)
"""The extensions that make a certificate one of a device."""


@dataclass(frozen=True)
class _Path:
    comment: str
    result: Result
    leaf: x509.Certificate
    intermediates: Sequence[x509.Certificate]
    flags: tuple[str, ...] = ()
    now: datetime = NOW
    serial: str | None = None

    def to_case(self) -> Case:
        fields = {
            "chain": [pem(self.leaf), *map(pem, self.intermediates)],
            "now": self.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if self.serial is not None:
            fields |= {"deviceSerial": self.serial, "deviceUrn": names.device_urn(self.serial)}
        return Case(self.comment, self.result, fields, self.flags)


def _bad(
    comment: str,
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    *flags: str,
    now: datetime = NOW,
) -> _Path:
    return _Path(comment, "invalid", leaf, intermediates, flags, now)


def make() -> Document:
    """Build all paths under one pinned root."""
    ca = authority()
    makers = (_sound, _altered, _untimely, _not_for_devices, _no_ca, _names, _urns, _off_the_path)
    tests = [path.to_case() for maker in makers for path in maker(ca)]
    return Document(
        algorithm="X.509",
        schema="schemas/certificate_chain_test_schema.json",
        header=[
            "Certification paths (RFC 5280, section 6), the device's certificate first.",
            "Only root is trusted. Each is judged at the time now; valid ones name deviceSerial.",
            "deviceUrn is how deviceSerial is written in the certificate: percent-encoded, as it"
            " is in every URL.",
        ],
        notes=_NOTES,
        groups=[Group("CertificateChain", tests, {"root": pem(ca.root)})],
    )


def _device_key() -> DeviceKey:
    return seeded_keys.p256("test device").public_key()


def _sound(ca: SeededCa) -> list[_Path]:
    kinds: dict[str, DeviceKey] = {
        "EC P-256": _device_key(),
        "EC P-384": seeded_keys.p384("test device").public_key(),
        "RSA 2048": seeded_keys.rsa_key("test device").public_key(),
        "Ed25519": seeded_keys.ed25519_key("test device").public_key(),
    }
    serials = {
        "a host name": "camera-7.fleet.example.org",
        "words": "Field camera 7 (spare)",
        "Unicode": "Kamera S\u00fcd \u2116 \u6771\u4eac",
        "64 characters": "SN 100%/" + "0123456789abcdef" * 3 + "&Co.+#7?",
    }
    paths = [(f"device with {kind}", key, "camera-7") for kind, key in kinds.items()]
    paths += [(f"serial: {kind}", _device_key(), serial) for kind, serial in serials.items()]
    between = [ca.intermediate]
    sound = [
        _Path(comment, "valid", device_certificate(ca, key, serial), between, serial=serial)
        for comment, key, serial in paths
    ]
    leaf = device_certificate(ca, _device_key(), "camera-7")
    first = leaf.not_valid_before_utc
    last = min(leaf.not_valid_after_utc, ca.intermediate.not_valid_after_utc)
    sound += [
        _Path("in its first second", "valid", leaf, between, (), first, "camera-7"),
        _Path("in its last second", "acceptable", leaf, between, ("LastSecond",), last, "camera-7"),
    ]
    with_root = [ca.intermediate, ca.root]
    flags = ("RootSentAlong",)
    sound.append(_Path("root sent along", "acceptable", leaf, with_root, flags, NOW, "camera-7"))
    return sound


def _altered(ca: SeededCa) -> list[_Path]:
    leaf = device_certificate(ca, _device_key(), "camera-7")
    der = leaf.public_bytes(Encoding.DER)
    signature = x509.load_der_x509_certificate(der[:-1] + bytes([der[-1] ^ 1]))
    serial = x509.load_der_x509_certificate(der.replace(b"camera-7", b"camera-8"))
    foreign = authority("another authority")
    foreign_leaf = device_certificate(foreign, _device_key(), "camera-7")
    between = [ca.intermediate]
    foreign_chain = [foreign.intermediate, foreign.root]
    return [
        _bad("last bit of the signature flipped", signature, between, "Altered"),
        _bad("one letter of the serial changed", serial, between, "Altered"),
        _bad("another authority", foreign_leaf, foreign_chain[:1], "OtherRoot"),
        _bad(
            "another authority, its root sent along",
            *(foreign_leaf, foreign_chain),
            *("OtherRoot", "RootSentAlong"),
        ),
        _bad("another's intermediate", leaf, foreign_chain[:1], "OtherRoot"),
        _bad("no intermediate", leaf, [], "Incomplete"),
    ]


def _untimely(ca: SeededCa) -> list[_Path]:
    leaf = device_certificate(ca, _device_key(), "camera-7")
    early = leaf.not_valid_before_utc - timedelta(seconds=1)
    late = leaf.not_valid_after_utc + timedelta(seconds=1)
    outlives = hand_made(
        *(_device_key(), "camera-outlives"),
        *_DEVICE,
        issuer=ca.intermediate,
        signer=ca.signer,
        lasting=timedelta(days=3_000),
    )
    after_issuer = ca.intermediate.not_valid_after_utc + timedelta(seconds=1)
    between = [ca.intermediate]
    return [
        _bad("a second before it begins", leaf, between, "NotYetValid", now=early),
        _bad("a second after it ended", leaf, between, "Expired", now=late),
        _bad("its issuer has ended", outlives, between, "Expired", now=after_issuer),
    ]


def _not_for_devices(ca: SeededCa) -> list[_Path]:
    weak = rsa.RSAPublicNumbers(
        65537, seeded_keys.rsa_key("weak test device", 1_024).public_key().public_numbers().n
    ).public_key()
    unable = (NOT_A_CA, key_usage(ca=True), CLIENT_AUTH)
    other: DeviceKey = seeded_keys.p521("test device").public_key()
    made: list[tuple[str, str, DeviceKey, tuple[x509.ExtensionType, ...], bool]] = [
        ("for servers alone", "Purpose", _device_key(), (*_DEVICE[:2], SERVER_AUTH), True),
        ("for no purpose", "Purpose", _device_key(), _DEVICE[:2], True),
        ("may not sign", "Purpose", _device_key(), unable, True),
        ("no extensions", "Purpose", _device_key(), (), True),
        ("RSA 1024", "WeakKey", weak, _DEVICE, True),
        ("EC P-521", "WeakKey", other, _DEVICE, True),
        ("no alternative name", "NoSerial", _device_key(), _DEVICE, False),
    ]
    paths = []
    for comment, flag, key, extensions, named in made:
        leaf = hand_made(
            key,
            f"camera, {comment}",
            *extensions,
            issuer=ca.intermediate,
            signer=ca.signer,
            alternative_names=None if named else [],
        )
        paths.append(_bad(comment, leaf, [ca.intermediate], flag))
    return paths


def _no_ca(ca: SeededCa) -> list[_Path]:
    camera = SeededSigner(seeded_keys.p256("an issuing camera"))
    issuing = device_certificate(ca, camera.public_key, "an issuing camera")
    below_device = hand_made(
        _device_key(), "camera below a camera", *_DEVICE, issuer=issuing, signer=camera
    )
    second = SeededSigner(seeded_keys.p256("a second intermediate"))
    second_ca = hand_made(
        second.public_key,
        "A second intermediate",
        x509.BasicConstraints(ca=True, path_length=0),
        key_usage(ca=True),
        issuer=ca.intermediate,
        signer=ca.signer,
    )
    below_second = hand_made(
        _device_key(), "camera below two", *_DEVICE, issuer=second_ca, signer=second
    )
    bare = hand_made(
        ca.signer.public_key,
        "Simulated Mfg Intermediate CA",
        issuer=ca.root,
        signer=ca.root_signer,
        alternative_names=[],
    )
    below_bare = hand_made(
        _device_key(), "camera below no CA", *_DEVICE, issuer=bare, signer=ca.signer
    )
    chains = {
        "a device issued it": (below_device, [issuing, ca.intermediate]),
        "a CA below pathlen 0": (below_second, [second_ca, ca.intermediate]),
        "an intermediate without CA:TRUE": (below_bare, [bare]),
    }
    return [_bad(comment, leaf, between, "NotACa") for comment, (leaf, between) in chains.items()]


def _names(ca: SeededCa) -> list[_Path]:
    """Encode the issuer's name in a leaf differently than in the issuer's own certificate."""

    def spelt(change: Callable[[str], str], kind: _ASN1Type) -> x509.Name:
        attributes = [
            each
            if each.oid == NameOID.COUNTRY_NAME
            else x509.NameAttribute(each.oid, change(str(each.value)), kind)
            for each in ca.intermediate.subject
        ]
        return x509.Name(attributes)

    leaf = device_certificate(ca, _device_key(), "camera-7")
    utf8 = _ASN1Type.UTF8String
    acceptable = {
        "issuer in upper case": spelt(str.upper, utf8),
        "issuer as PrintableString": spelt(str, _ASN1Type.PrintableString),
        "issuer with more white space": spelt(lambda text: text.replace(" ", "  "), utf8),
    }
    between, flags = [ca.intermediate], ("OtherSpelling",)
    paths = [
        _Path(
            *(comment, "acceptable", _issued_by(leaf, issuer, ca.signer), between, flags),
            serial="camera-7",
        )
        for comment, issuer in acceptable.items()
    ]
    other = _issued_by(leaf, spelt(lambda text: text[:-1], utf8), ca.signer)
    return [*paths, _bad("issuer with a letter less", other, between, "OtherRoot")]


def _urns(ca: SeededCa) -> list[_Path]:
    """Write a serial in the URN as `device_urn` does not."""

    def named(*spellings: str) -> x509.Certificate:
        prefix = names.DEVICE_URN_PREFIX
        urns = [x509.UniformResourceIdentifier(prefix + spelling) for spelling in spellings]
        return hand_made(
            *(_device_key(), "camera/7"),
            *_DEVICE,
            issuer=ca.intermediate,
            signer=ca.signer,
            alternative_names=urns,
        )

    between, flag = [ca.intermediate], "UrnSpelling"
    spelt = {
        "hex digits in lower case": ("camera%2f7",),
        "a letter percent-encoded": ("%63amera%2F7",),
        "a slash that is not percent-encoded": ("camera/7",),
        "a plus sign for a blank": ("camera+7",),
        "an exclamation mark that is not percent-encoded": ("camera!7",),
        "bytes that are no UTF-8": ("camera%FF7",),
        "half an escape": ("camera%2",),
        "an empty serial": ("",),
        "two URNs": ("camera%2F7", "camera-8"),
    }
    sound = _Path("made by hand", "valid", named("camera%2F7"), between, serial="camera/7")
    return [sound, *(_bad(comment, named(*urn), between, flag) for comment, urn in spelt.items())]


def _issued_by(leaf: x509.Certificate, issuer: x509.Name, signer: Signer) -> x509.Certificate:
    """Sign a certificate again, with another name of the issuer."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(issuer)
        .public_key(leaf.public_key())
        .serial_number(leaf.serial_number)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
    )
    for extension in leaf.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    return builder.sign(signer.key, signer.hash_algorithm, ecdsa_deterministic=True)


def _off_the_path(ca: SeededCa) -> list[_Path]:
    below_root = hand_made(
        _device_key(), "camera below the root", *_DEVICE, issuer=ca.root, signer=ca.root_signer
    )
    leaf = device_certificate(ca, _device_key(), "camera-7")
    foreign = authority("another authority")
    beside = [ca.intermediate, foreign.intermediate]
    return [
        _bad("an intermediate beside the path", below_root, [ca.intermediate], "OffThePath"),
        _bad("another's intermediate beside the path", leaf, beside, "OffThePath"),
        _bad("intermediate first", ca.intermediate, [leaf], "OffThePath"),
    ]
