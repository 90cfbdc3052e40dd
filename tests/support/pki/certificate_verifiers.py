"""Verify this project's certificates and CRLs with independent implementations.

A verifier (`Judge`) takes many chains at once, because starting a program costs more than a
verification. For each chain it returns None, or the reason for which it refuses the chain. OpenSSL,
pyhanko, pyca and pkilint are always used. Java and GnuTLS are used if they are installed.
"""

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import verification
from pkilint import loader, pkix
from pkilint.bin import lint_pkix_signer_signee_cert_chain as chain_linter
from pkilint.cabf import cabf_crl
from pkilint.pkix import certificate, crl, extension, name
from pkilint.validation import ValidationFindingSeverity
from pyhanko_certvalidator import CertificateValidator, ValidationContext
from pyhanko_certvalidator.errors import PathBuildingError, PathValidationError, ValidationError

from birthmark_sma.errors import PathRefusedError
from birthmark_sma.pki import names
from birthmark_sma.pki.path_validation import verify_path
from tests.support.pki.chains import Chain

Judge = Callable[[Sequence[Chain]], list[str | None]]

_CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
_PROGRAM_SECONDS = 120


# --- certification paths


def ask_openssl(chains: Sequence[Chain]) -> list[str | None]:
    """Verify with `openssl verify -x509_strict`, without a purpose and as a TLS client."""
    return [
        _first_complaint(plain, as_client)
        for plain, as_client in zip(
            _openssl_verify(chains, "-x509_strict"),
            _openssl_verify(chains, "-x509_strict", "-purpose", "sslclient"),
            strict=True,
        )
    ]


def ask_pyhanko(chains: Sequence[Chain]) -> list[str | None]:
    """Verify with pyhanko-certvalidator, for signatures and client authentication."""
    return [asyncio.run(_ask_pyhanko(chain)) for chain in chains]


async def _ask_pyhanko(chain: Chain) -> str | None:
    context = ValidationContext(
        trust_roots=[_asn1(chain.root)], moment=_now(), revocation_mode="soft-fail"
    )
    intermediates = [_asn1(intermediate) for intermediate in chain.intermediates]
    validator: Any = CertificateValidator(_asn1(chain.leaf), intermediates, context)
    try:
        await validator.async_validate_usage({"digital_signature"}, {"client_auth"})
    except (PathBuildingError, PathValidationError, ValidationError) as refusal:
        return str(refusal)
    return None


def ask_pyca(chains: Sequence[Chain]) -> list[str | None]:
    """Verify with pyca/cryptography's client verifier and its web PKI extension policies."""
    return [_ask_pyca(chain) for chain in chains]


def _ask_pyca(chain: Chain) -> str | None:
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([chain.root]))
        .time(_now())
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
            ee_policy=verification.ExtensionPolicy.webpki_defaults_ee(),
        )
        .build_client_verifier()
    )
    try:
        verifier.verify(chain.leaf, list(chain.intermediates))
    except verification.VerificationError as refusal:
        return str(refusal)
    return None


def ask_ourselves(chains: Sequence[Chain]) -> list[str | None]:
    """Verify with this project's `pki.path_validation.verify_path`."""
    return [_ask_ourselves(chain) for chain in chains]


def _ask_ourselves(chain: Chain) -> str | None:
    try:
        device_serial = verify_path(chain.leaf, chain.intermediates, root=chain.root, now=_now())
    except PathRefusedError as refusal:
        return str(refusal)
    return None if device_serial == names.device_serial_of(chain.leaf) else "another serial"


def ask_java(chains: Sequence[Chain]) -> list[str | None]:
    """Verify with the PKIX CertPathValidator of Java, all chains in one process."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        lines = []
        for number, chain in enumerate(chains):
            path = (chain.root, chain.leaf, *chain.intermediates)
            files = [folder / f"{number}-{position}.pem" for position in range(len(path))]
            for file, member in zip(files, path, strict=True):
                file.write_bytes(_pem(member))
            lines.append("\t".join(str(file) for file in files))
        answered = subprocess.run(
            ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", str(_verify_path_java())],
            input="\n".join(lines) + "\n",
            check=True,
            capture_output=True,
            text=True,
            timeout=_PROGRAM_SECONDS,
        )
    answers = answered.stdout.splitlines()
    assert len(answers) == len(chains), answered.stdout + answered.stderr
    return [None if answer == "OK" else answer for answer in answers]


def ask_gnutls(chains: Sequence[Chain]) -> list[str | None]:
    """Verify with GnuTLS's `certtool --verify`, for client authentication."""
    with tempfile.TemporaryDirectory() as directory:
        return [_ask_gnutls(chain, Path(directory)) for chain in chains]


def _ask_gnutls(chain: Chain, folder: Path) -> str | None:
    (folder / "root.pem").write_bytes(_pem(chain.root))
    (folder / "chain.pem").write_bytes(_pem(chain.leaf, *chain.intermediates))
    ran = _run(
        ["certtool", "--verify", "--verify-purpose", _CLIENT_AUTH, "--verify-profile", "medium"],
        ["--load-ca-certificate", "root.pem", "--infile", "chain.pem"],
        folder=folder,
    )
    return None if ran.returncode == 0 else ran.stdout + ran.stderr


@cache
def judges() -> dict[str, Judge]:
    """Return every verifier that this machine has, by name."""
    available: dict[str, Judge] = {
        "openssl": ask_openssl,
        "pyhanko": ask_pyhanko,
        "pyca": ask_pyca,
        "ourselves": ask_ourselves,
    }
    if shutil.which("java"):
        available["java"] = ask_java
    if shutil.which("certtool"):
        available["gnutls"] = ask_gnutls
    return available


def _openssl_verify(chains: Sequence[Chain], *options: str) -> list[str | None]:
    """Run `openssl verify` once for all the leaves that share root and intermediates."""
    complaints: dict[int, str | None] = {}
    alike: dict[tuple[x509.Certificate, ...], list[int]] = {}
    for number, chain in enumerate(chains):
        alike.setdefault((chain.root, *chain.intermediates), []).append(number)
    for (root, *intermediates), numbers in alike.items():
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            (folder / "root.pem").write_bytes(_pem(root))
            (folder / "untrusted.pem").write_bytes(_pem(*intermediates))
            for number in numbers:
                (folder / f"{number}.pem").write_bytes(_pem(chains[number].leaf))
            ran = _run(
                ["openssl", "verify", *options, "-no-CApath", "-no-CAstore"],
                ["-CAfile", "root.pem", "-untrusted", "untrusted.pem"],
                [f"{number}.pem" for number in numbers],
                folder=folder,
            )
        accepted = set(ran.stdout.splitlines())
        refused = _openssl_refusals(ran.stderr)
        for number in numbers:
            file = f"{number}.pem"
            complaints[number] = None if f"{file}: OK" in accepted else refused.get(file, "silent")
    return [complaints[number] for number in range(len(chains))]


def _openssl_refusals(standard_error: str) -> dict[str, str]:
    """Return OpenSSL's output by file. The output about a file ends with a line that names it."""
    refusals: dict[str, str] = {}
    said: list[str] = []
    for line in standard_error.splitlines():
        said.append(line)
        if line.startswith("error ") and line.endswith(": verification failed"):
            file = line.removeprefix("error ").removesuffix(": verification failed")
            refusals[file] = "\n".join(said)
            said = []
    return refusals


# --- linting


@dataclass(frozen=True)
class Finding:
    """A finding of pkilint at WARNING or above."""

    severity: str
    code: str
    message: str


def lint_certificate(checked: x509.Certificate) -> list[Finding]:
    """Return the findings of pkilint's RFC 5280 certificate linter at WARNING or above.

    One finding is left out: pkilint expects every URI to be a web URL, so it reports a device's URN
    as malformed. RFC 5280, section 4.2.1.6, requires only a scheme and a scheme-specific part, and
    the URN satisfies RFC 8141. The test of `names.device_urn` checks that syntax instead.
    """
    document = loader.RFC5280CertificateDocumentLoader().load_der_document(_der(checked))
    return [
        finding
        for finding in findings(_certificate_linter().validate(document.root))
        if not (
            finding.code == "pkix.invalid_uri_syntax"
            and f'"{names.DEVICE_URN_PREFIX}' in finding.message
        )
    ]


def lint_pair(issuer: x509.Certificate, subject: x509.Certificate) -> list[Finding]:
    """Return pkilint's findings about a pair: names, key identifiers and signature."""
    documents: dict[str, Any] = {}
    load = loader.RFC5280CertificateDocumentLoader().load_der_document
    for role, checked in (("issuer", issuer), ("subject", subject)):
        documents[role] = load(_der(checked), role, role, documents)
    decoders = chain_linter.create_decoder_validation_container()
    results = [
        *decoders.validate(documents["issuer"].root),
        *decoders.validate(documents["subject"].root),
        *chain_linter.create_issuer_validation_container().validate(documents["issuer"].root),
        *chain_linter.create_subject_validation_container().validate(documents["subject"].root),
    ]
    return findings(results)


def lint_crl(checked: x509.CertificateRevocationList) -> list[Finding]:
    """Return the findings of pkilint's CRL linter, with the rules of the CA/Browser Forum added."""
    kind = crl.CertificateRevocationListType.CRL
    linter = crl.create_pkix_crl_validator_container(
        [
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [
            crl.create_issuer_validator_container([]),
            crl.create_validity_validator_container(
                [cabf_crl.create_validity_period_validator(kind)]
            ),
            crl.create_extensions_validator_container([]),
            cabf_crl.CabfCrlReasonCodeAllowlistValidator(kind),
        ],
    )
    der = checked.public_bytes(serialization.Encoding.DER)
    document = loader.RFC5280CertificateListDocumentLoader().load_der_document(der)
    return findings(linter.validate(document.root))


@cache
def _certificate_linter() -> Any:
    return certificate.create_pkix_certificate_validator_container(
        certificate.create_decoding_validators(
            name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS
        ),
        [
            certificate.create_issuer_validator_container([]),
            certificate.create_validity_validator_container(),
            certificate.create_subject_validator_container([]),
            certificate.create_extensions_validator_container([]),
            certificate.create_spki_validator_container([]),
        ],
    )


def findings(results: Iterable[Any]) -> list[Finding]:
    """Return the findings in results of pkilint at WARNING or above."""
    return [
        Finding(str(found.finding.severity), str(found.finding.code), str(found.message))
        for result in results
        for found in result.finding_descriptions
        if found.finding.severity <= ValidationFindingSeverity.WARNING
    ]


# --- revocation


def openssl_accepts_crl(checked: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Return whether `openssl crl` verifies the CRL's signature with the issuer's key."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        (folder / "list.pem").write_bytes(checked.public_bytes(serialization.Encoding.PEM))
        (folder / "issuer.pem").write_bytes(_pem(issuer))
        ran = _run(
            ["openssl", "crl", "-in", "list.pem", "-noout", "-verify"],
            ["-CAfile", "issuer.pem", "-no-CApath", "-no-CAstore"],
            folder=folder,
        )
    return ran.returncode == 0 and "verify OK" in ran.stdout + ran.stderr


def openssl_verify_with_crl(chain: Chain, crl: x509.CertificateRevocationList) -> str | None:
    """Verify with `openssl verify -crl_check`, which looks the leaf up in the CRL."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        (folder / "root.pem").write_bytes(_pem(chain.root))
        (folder / "untrusted.pem").write_bytes(_pem(*chain.intermediates))
        (folder / "leaf.pem").write_bytes(_pem(chain.leaf))
        (folder / "list.pem").write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        ran = _run(
            ["openssl", "verify", "-x509_strict", "-crl_check", "-no-CApath", "-no-CAstore"],
            ["-CAfile", "root.pem", "-untrusted", "untrusted.pem", "-CRLfile", "list.pem"],
            ["leaf.pem"],
            folder=folder,
        )
    return None if ran.returncode == 0 else ran.stderr


def openssl_text(checked: x509.Certificate) -> str:
    """Return the output of `openssl x509 -text` for a certificate."""
    ran = subprocess.run(
        ["openssl", "x509", "-noout", "-text", "-nameopt", "utf8,sep_multiline,lname"],
        input=_pem(checked),
        check=True,
        capture_output=True,
        timeout=_PROGRAM_SECONDS,
    )
    return ran.stdout.decode()


def _run(*words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [word for group in words for word in group],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=_PROGRAM_SECONDS,
    )


def _now() -> datetime:
    # Separate programs read the machine's clock, so the libraries get the same time.
    return datetime.now(UTC)


def _first_complaint(*complaints: str | None) -> str | None:
    return next((complaint for complaint in complaints if complaint is not None), None)


def _verify_path_java() -> Path:
    return Path(__file__).with_name("VerifyPath.java")


def _der(member: x509.Certificate) -> bytes:
    return member.public_bytes(serialization.Encoding.DER)


def _pem(*members: x509.Certificate) -> bytes:
    return b"".join(member.public_bytes(serialization.Encoding.PEM) for member in members)


def _asn1(member: x509.Certificate) -> asn1_x509.Certificate:
    """Load a certificate for pyhanko, with a workaround for a bug of asn1crypto 1.5.1.

    asn1crypto mistakes a length that ends with the byte 0x80 for an indefinite length. It then
    encodes the element anew, which changes the signed bytes. So `dump` of each such element is
    replaced, and returns the original encoding.
    """
    certificate: Any = asn1_x509.Certificate.load(_der(member))
    public_key = member.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for element, der in (
        (certificate, _der(member)),
        (certificate["tbs_certificate"], member.tbs_certificate_bytes),
        (certificate.public_key, public_key),
    ):
        element.dump = partial(_same, der)
    return certificate


def _same(der: bytes, force: bool = False) -> bytes:
    return der
