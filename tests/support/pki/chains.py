"""Certification paths for tests: valid ones of every kind, and invalid ones as seen in the field.

The verifiers of `certificate_verifiers` read the machine's clock, so everything here is made for
the present time. An expired chain is issued in the past. Keys are made once in each process.
"""

import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from birthmark_sma.pki import certificates, names
from birthmark_sma.pki.certificates import Publication
from birthmark_sma.pki.keys.ca_keys import CaKeyType, Signer, generate
from birthmark_sma.pki.keys.key_policy import DeviceKey

NOW = datetime.now(UTC)
"""The issue time of valid chains. It has microseconds, like the time of a real clock."""

DevicePrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

DEVICE_KEY_KINDS: dict[str, Callable[[], DevicePrivateKey]] = {
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-3072": lambda: rsa.generate_private_key(65537, 3072),
    "rsa-4096": lambda: rsa.generate_private_key(65537, 4096),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}

DEVICE_SERIALS = {
    "host-name": "camera-7.fleet.example.org",
    "plain-name": "Field camera 7 (spare)",
    "unicode": "Kamera Süd № 東京",
    "64-characters": "SN 100%/" + "0123456789abcdef" * 3 + "&Co.+#7?",
}

PUBLICATIONS = {
    "unpublished": None,
    "published": Publication(
        crl_url="http://pki.example.org/intermediate.crl",
        issuer_url="http://pki.example.org/intermediate.cer",
        ocsp_url="http://pki.example.org/ocsp/",
    ),
}


@dataclass(frozen=True)
class Ca:
    """A root CA, and an intermediate CA that the root has certified."""

    root_signer: Signer
    root: x509.Certificate
    signer: Signer
    intermediate: x509.Certificate


@dataclass(frozen=True)
class Chain:
    """The certificates that a device presents, and the root that the verifier trusts."""

    name: str
    leaf: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    root: x509.Certificate


def certificate_serial(label: str) -> int:
    """Return a serial number of 159 bits that depends only on the label."""
    return (
        int.from_bytes(hashlib.sha256(label.encode("utf-8", "surrogatepass")).digest()[:19], "big")
        | 1 << 158
    )


@cache
def ca_signers(key_type: CaKeyType) -> tuple[Signer, Signer]:
    """Return the keys of a root and of an intermediate, the same in the whole process."""
    return generate(key_type), generate(key_type)


@cache
def device_key(kind: str) -> DevicePrivateKey:
    """Return a device's private key of a kind in DEVICE_KEY_KINDS."""
    return DEVICE_KEY_KINDS[kind]()


def make_ca(key_type: CaKeyType, *, now: datetime, root_now: datetime | None = None) -> Ca:
    """Issue root and intermediate at time `now`, or the root at `root_now`."""
    root_signer, signer = ca_signers(key_type)
    root = certificates.sign(
        certificates.prepare_root(
            root_signer.public_key,
            now=root_now or now,
            serial_number=certificate_serial(f"root {key_type}"),
        ),
        root_signer,
    )
    intermediate = certificates.sign(
        certificates.prepare_intermediate(
            signer.public_key,
            issuer=root,
            now=now,
            serial_number=certificate_serial(f"intermediate {key_type}"),
        ),
        root_signer,
        issuer=root,
    )
    return Ca(root_signer, root, signer, intermediate)


@cache
def ca(key_type: CaKeyType = CaKeyType.EC_P256) -> Ca:
    """Return a CA that was made 180 days ago and is valid today."""
    return make_ca(key_type, now=NOW - timedelta(days=180))


def issue_device(
    authority: Ca,
    public_key: DeviceKey,
    device_serial: str,
    *,
    now: datetime = NOW,
    publication: Publication | None = None,
) -> x509.Certificate:
    """Prepare and sign a device certificate."""
    prepared = certificates.prepare_device(
        public_key,
        device_serial,
        issuer=authority.intermediate,
        now=now,
        serial_number=certificate_serial(f"device {device_serial}"),
        publication=publication,
    )
    return certificates.sign(prepared, authority.signer, issuer=authority.intermediate)


@cache
def sound_chains(key_type: CaKeyType) -> tuple[Chain, ...]:
    """Return one chain for every kind of device key, device serial and publication."""
    authority = ca(key_type)
    return tuple(
        Chain(
            f"{key_type} {kind} {label} {published}",
            issue_device(
                authority, device_key(kind).public_key(), device_serial, publication=publication
            ),
            (authority.intermediate,),
            authority.root,
        )
        for kind in DEVICE_KEY_KINDS
        for label, device_serial in DEVICE_SERIALS.items()
        for published, publication in PUBLICATIONS.items()
    )


def sound_chain(device_serial: str = "camera-7.fleet.example.org") -> Chain:
    """Return one chain of an EC P-256 device under an EC P-256 authority."""
    authority = ca()
    leaf = issue_device(authority, device_key("ec-p256").public_key(), device_serial)
    return Chain("sound", leaf, (authority.intermediate,), authority.root)


# --- invalid chains. Most are made by hand, because the product's code prevents them.


def hand_made(
    public_key: DeviceKey,
    common_name: str,
    *extensions: x509.ExtensionType,
    issuer: x509.Certificate,
    signer: Signer,
    alternative_names: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    """Sign a certificate with SKI, AKI, alternative names and the given extensions.

    By default the alternative name is the URN of the device `common_name`.
    """
    urn = x509.UniformResourceIdentifier(names.device_urn(common_name))
    builder = (
        x509.CertificateBuilder()
        .subject_name(names.distinguished_name(common_name))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(certificate_serial(common_name))
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(days=30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(alternative_names or [urn]), critical=False)
    )
    for extension in extensions:
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer.key, signer.hash_algorithm)


def key_usage(*, ca: bool) -> x509.KeyUsage:
    """Return keyCertSign and cRLSign for a CA, and digitalSignature for a device."""
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


NOT_A_CA = x509.BasicConstraints(ca=False, path_length=None)
CLIENT_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


def v1_intermediate() -> Chain:
    """The intermediate comes from a bare `openssl x509 -req`: version 1, no CA:TRUE."""
    authority = ca()
    device = device_key("ec-p256").public_key()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(authority.intermediate.subject)
            .sign(authority.signer.key, hashes.SHA256())
        )
        (folder / "request.pem").write_bytes(request.public_bytes(serialization.Encoding.PEM))
        (folder / "root.pem").write_bytes(authority.root.public_bytes(serialization.Encoding.PEM))
        (folder / "root.key").write_text(authority.root_signer.encrypted_pem(b"for this test"))
        openssl = "openssl x509 -req -in request.pem -CA root.pem -CAkey root.key -days 365"
        made = subprocess.run(
            [*openssl.split(), "-passin", "pass:for this test", "-set_serial", "2"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    intermediate = x509.load_pem_x509_certificate(made.stdout)
    leaf = hand_made(
        device,
        "camera",
        NOT_A_CA,
        key_usage(ca=False),
        CLIENT_AUTH,
        issuer=intermediate,
        signer=authority.signer,
    )
    return Chain("v1 intermediate", leaf, (intermediate,), authority.root)


def foreign_root() -> Chain:
    """The trusted root has the same name, but belongs to another authority."""
    foreign = ca(CaKeyType.EC_P384).root
    chain = sound_chain()
    return Chain("foreign root", chain.leaf, chain.intermediates, foreign)


def altered_signature() -> Chain:
    """The last bit of the leaf's signature is flipped."""
    chain = sound_chain()
    altered = bytearray(chain.leaf.public_bytes(serialization.Encoding.DER))
    altered[-1] ^= 1
    leaf = x509.load_der_x509_certificate(bytes(altered))
    return Chain("altered signature", leaf, chain.intermediates, chain.root)


def altered_serial() -> Chain:
    """One letter of the device serial is changed after signing."""
    chain = sound_chain("camera-7")
    der = chain.leaf.public_bytes(serialization.Encoding.DER)
    leaf = x509.load_der_x509_certificate(der.replace(b"camera-7", b"camera-8"))
    return Chain("altered serial", leaf, chain.intermediates, chain.root)


def expired_leaf() -> Chain:
    """The leaf expired after its 730 days. Intermediate and root are still valid."""
    authority = make_ca(CaKeyType.EC_P256, now=NOW - timedelta(days=900))
    leaf = issue_device(
        authority,
        device_key("ec-p256").public_key(),
        "camera",
        now=NOW - timedelta(days=731),
    )
    return Chain("expired leaf", leaf, (authority.intermediate,), authority.root)


def leaf_of_tomorrow() -> Chain:
    """The leaf is not valid yet."""
    authority = ca()
    leaf = issue_device(
        authority, device_key("ec-p256").public_key(), "camera", now=NOW + timedelta(days=1)
    )
    return Chain("leaf of tomorrow", leaf, (authority.intermediate,), authority.root)


def expired_intermediate() -> Chain:
    """The intermediate expired after its 1,825 days. The leaf is valid for longer."""
    authority = make_ca(CaKeyType.EC_P256, now=NOW - timedelta(days=1_900))
    leaf = hand_made(
        device_key("ec-p256").public_key(),
        "camera",
        NOT_A_CA,
        key_usage(ca=False),
        CLIENT_AUTH,
        issuer=authority.intermediate,
        signer=authority.signer,
    )
    return Chain("expired intermediate", leaf, (authority.intermediate,), authority.root)


def ca_below_path_length_0() -> Chain:
    """The intermediate, whose path length is 0, has certified another CA."""
    authority = ca()
    below = Signer(ec.generate_private_key(ec.SECP256R1()))
    second = hand_made(
        below.public_key,
        "A second intermediate",
        x509.BasicConstraints(ca=True, path_length=0),
        key_usage(ca=True),
        issuer=authority.intermediate,
        signer=authority.signer,
    )
    leaf = hand_made(
        device_key("ec-p256").public_key(),
        "camera",
        NOT_A_CA,
        key_usage(ca=False),
        CLIENT_AUTH,
        issuer=second,
        signer=below,
    )
    return Chain("CA below path length 0", leaf, (second, authority.intermediate), authority.root)


def device_as_ca() -> Chain:
    """A device has certified another device with its own key."""
    authority = ca()
    issuing = Signer(ec.generate_private_key(ec.SECP256R1()))
    device = issue_device(authority, issuing.public_key, "an issuing camera")
    leaf = hand_made(
        device_key("ec-p256").public_key(),
        "camera",
        NOT_A_CA,
        key_usage(ca=False),
        CLIENT_AUTH,
        issuer=device,
        signer=issuing,
    )
    return Chain("device as CA", leaf, (device, authority.intermediate), authority.root)


def server_certificate() -> Chain:
    """The leaf is for server authentication only."""
    authority = ca()
    leaf = hand_made(
        device_key("ec-p256").public_key(),
        "server.example.org",
        NOT_A_CA,
        key_usage(ca=False),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        issuer=authority.intermediate,
        signer=authority.signer,
    )
    return Chain("server certificate", leaf, (authority.intermediate,), authority.root)


BAD_CHAINS: tuple[Callable[[], Chain], ...] = (
    v1_intermediate,
    foreign_root,
    altered_signature,
    altered_serial,
    expired_leaf,
    leaf_of_tomorrow,
    expired_intermediate,
    ca_below_path_length_0,
    device_as_ca,
    server_certificate,
)
