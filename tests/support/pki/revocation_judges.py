"""Ask independent programs whether certificates are revoked: by lists, and by OCSP.

A judge takes many certificates at once, because starting a program costs more than an answer. It
returns a word for each: `good`, `revoked` or `unknown`, with the reason as RFC 5280 names it if the
program tells one (`revoked: keyCompromise`). Lists know no unknown certificates: a certificate that
they lack is good.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.cameras.checkers import COMPILERS, build_go
from tests.support.pki.ocsp import post, request_for

_PROGRAM_SECONDS = 120
GOOD, REVOKED, UNKNOWN = "good", "revoked", "unknown"
UNSPECIFIED = f"{REVOKED}: unspecified"


@dataclass(frozen=True)
class Issued:
    """A device certificate with its issuer."""

    certificate: x509.Certificate
    issuer: x509.Certificate


class Case:
    """The files about which judges are asked: certificates, their issuers, root, lists.

    The lists must be those of the root and of all issuers. `url` is that of the OCSP responder.
    """

    def __init__(
        self,
        folder: Path,
        issued: Sequence[Issued],
        root: x509.Certificate,
        crls: Sequence[x509.CertificateRevocationList],
        url: str,
    ) -> None:
        self.url = url
        self.root = _write(folder / "root.pem", root)
        self.lists = [
            _write(folder / f"{number}.crl", each, Encoding.DER) for number, each in enumerate(crls)
        ]
        self.all_lists = folder / "lists.pem"
        self.all_lists.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in crls))
        self.certificates = [
            _write(folder / f"{number}.pem", each.certificate) for number, each in enumerate(issued)
        ]
        issuers: dict[x509.Certificate, Path] = {}
        for each in issued:
            if each.issuer not in issuers:
                issuers[each.issuer] = _write(folder / f"issuer-{len(issuers)}.pem", each.issuer)
        self.issuers = [issuers[each.issuer] for each in issued]
        self.all_issuers = folder / "issuers.pem"
        self.all_issuers.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in issuers))

    def pairs(self) -> list[tuple[Path, Path]]:
        """Return the files of each certificate and of its issuer."""
        return list(zip(self.certificates, self.issuers, strict=True))


BY_LISTS = frozenset({"openssl verify", "java, lists", "go, lists"})
WITHOUT_REASONS = frozenset({"openssl verify", "ocsptool", "ocsptool, nonce"})
"""Judges that do not tell the reason of a revocation."""


def ask_all(case: Case) -> dict[str, list[str]]:
    """Return the words of each judge about each certificate. Fail if a program is missing.

    Only Go is left out if no compiler could be installed.
    """
    for program in ("ocsptool", "java"):
        assert shutil.which(program), f"{program} is missing. Type: make setup-verifiers"
    return {
        "openssl verify": _ask_openssl_verify(case),
        "openssl ocsp": _ask_openssl_ocsp(case),
        "openssl ocsp, SHA-256": _ask_openssl_ocsp(case, "-sha256", "-no_nonce"),
        "ocsptool": _ask_ocsptool(case),
        "ocsptool, nonce": _ask_ocsptool(case, "--nonce"),
        **_ask_java(case),
        **(_ask_go(case) if COMPILERS["go"] else {}),
    }


def can_say(judge: str, word: str) -> str:
    """Return what a judge that agrees says of a certificate for which the register has `word`."""
    if judge in BY_LISTS and word == UNKNOWN:
        return GOOD
    # RFC 5280, section 5.3.1: the reason `unspecified` is left out. Java tells it all the same.
    if judge in WITHOUT_REASONS or (word == UNSPECIFIED and not judge.startswith("java")):
        return REVOKED if word.startswith(REVOKED) else word
    return word


def _ask_openssl_verify(case: Case) -> list[str]:
    """Ask `openssl verify -crl_check_all`, which needs a list of every CA of the path."""
    ran = _run(
        *("openssl", "verify", "-x509_strict", "-crl_check_all", "-no-CApath", "-no-CAstore"),
        *("-CAfile", case.root, "-untrusted", case.all_issuers, "-CRLfile", case.all_lists),
        *case.certificates,
    )
    return [
        GOOD
        if f"{each}: OK\n" in ran
        else REVOKED
        if re.search(rf"error 23 .*\nerror {re.escape(str(each))}: verification failed", ran)
        else ran
        for each in case.certificates
    ]


def _ask_openssl_ocsp(case: Case, *options: str) -> list[str]:
    """Ask `openssl ocsp`, which verifies the response under the root alone."""
    answers = []
    for certificate, issuer in case.pairs():
        ran = _run(
            *("openssl", "ocsp", *options, "-issuer", issuer, "-cert", certificate),
            *("-url", case.url, "-CAfile", case.root, "-no-CApath", "-no-CAstore"),
        )
        status = re.search(rf"^{re.escape(str(certificate))}: (\w+)$", ran, re.MULTILINE)
        reason = re.search(r"^\s*Reason: (\w+)$", ran, re.MULTILINE)
        verified = status is not None and "Response verify OK" in ran
        answers.append(_word(status[1], reason and reason[1]) if status and verified else ran)
    return answers


def _ask_ocsptool(case: Case, *options: str) -> list[str]:
    """Ask GnuTLS's `ocsptool`, which verifies the response under the issuer."""
    answers = []
    for certificate, issuer in case.pairs():
        ran = _run(
            *("ocsptool", f"--ask={case.url}", "--load-cert", certificate, *options),
            *("--load-issuer", issuer, "--load-trust", issuer),
        )
        status = re.search(r"Certificate Status: (\w+)", ran)
        verified = status is not None and "Verifying OCSP Response: Success" in ran
        answers.append(_word(status[1]) if status and verified else ran)
    return answers


def _ask_java(case: Case) -> dict[str, list[str]]:
    """Ask Java's PKIXRevocationChecker in both ways, without a fallback from one to the other."""
    ways = {"java, lists": [str(each) for each in case.lists], "java, OCSP": [case.url]}
    lines = [
        "\t".join([str(case.root), str(certificate), str(issuer), *sources])
        for sources in ways.values()
        for certificate, issuer in case.pairs()
    ]
    program = Path(__file__).with_name("CheckRevocation.java")
    ran = subprocess.run(
        ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", program],
        input="\n".join(lines) + "\n",
        check=True,
        capture_output=True,
        text=True,
        timeout=_PROGRAM_SECONDS,
    )
    words = [_word(*each.split(": ", 1)) for each in ran.stdout.splitlines()]
    count = len(case.certificates)
    return {name: words[at * count : (at + 1) * count] for at, name in enumerate(ways)}


def _ask_go(case: Case) -> dict[str, list[str]]:
    """Ask Go's standard library, which verifies the path, the lists and the responses."""
    folder = case.root.parent
    with httpx2.Client(trust_env=False) as client:
        for number, (certificate, issuer) in enumerate(case.pairs()):
            serial = _load(certificate).serial_number
            answer = post(client, request_for(_load(issuer), serial), case.url)
            (folder / f"{number}.ocsp").write_bytes(answer.content)
    lines = []
    for sources in (case.lists, None):
        for number, pair in enumerate(case.pairs()):
            told = sources or [folder / f"{number}.ocsp"]
            files = [*(_as_der(each) for each in (case.root, *pair)), *told]
            lines.append("\t".join(map(str, files)))
    ran = subprocess.run(
        [build_go(Path(__file__).with_name("CheckRevocation.go"))],
        input="\n".join(lines) + "\n",
        check=True,
        capture_output=True,
        text=True,
        timeout=_PROGRAM_SECONDS,
    )
    words, count = ran.stdout.splitlines(), len(case.certificates)
    return {"go, lists": words[:count], "go, OCSP": words[count:]}


def _load(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def _as_der(file: Path) -> Path:
    return _write(file.with_suffix(".der"), _load(file), Encoding.DER)


def _word(status: str, told: str | None = None) -> str:
    """Return a program's answer in the words of this module."""
    if status == "refused" and told is not None and "status is unknown" in told:
        return UNKNOWN
    if told is None:
        return status
    return f"{status}: {told if status == 'refused' else reason_name(told)}"


def reason_name(reason: str) -> str:
    """Return the name of a reason in RFC 5280: cessationOfOperation for CESSATION_OF_OPERATION.

    The register writes cessation_of_operation, and Java the same in capitals.
    """
    plain = reason.lower() if reason.isupper() else reason
    return re.sub("_(.)", lambda found: found[1].upper(), plain)


def _write(
    file: Path,
    content: x509.Certificate | x509.CertificateRevocationList,
    encoding: Encoding = Encoding.PEM,
) -> Path:
    file.write_bytes(content.public_bytes(encoding))
    return file


def _run(*words: object) -> str:
    ran = subprocess.run(
        [str(word) for word in words],
        check=False,
        capture_output=True,
        text=True,
        timeout=_PROGRAM_SECONDS,
    )
    return ran.stdout + ran.stderr
