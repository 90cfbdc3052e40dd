"""The aggregation server of `world`: it verifies every bundle, and validates its camera token.

It pins roots. It comes to trust the next one as docs/operate/certificates.md says: by the list that
the root before it has signed.
"""

import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark_sma.client import (
    AuthorityClient,
    Indeterminate,
    IssuerCrls,
    Outcome,
    Pass,
    RevocationUnknownError,
    VerifiedBundle,
    parse_bundle,
    verify_bundle,
)
from birthmark_sma.pki.names import same_name

_PATIENCE_SECONDS = 180.0


class Aggregation:
    """Bundles are kept by `bundle_id` until `validate`, which forgets none that does not pass."""

    def __init__(self, url: str, folder: Path) -> None:
        """Pin the root that the authority has now."""
        self._url = url
        self._folder = folder
        self._http = httpx2.Client(base_url=url, trust_env=False, timeout=60)
        self.roots = [x509.load_der_x509_certificate(self._get("/pki/root.crt"))]
        self._lists = IssuerCrls(url, root_lists={"/pki/root.crl": self.roots[0]})
        self._roots_list = b""
        self._waiting: list[VerifiedBundle] = []
        self._taken: set[bytes] = set()
        self.pictures = 0
        self.issuers: dict[str, int] = {}
        """The number of pictures under each intermediate, by its common name."""
        self.certificates: set[int] = set()

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The fingerprints of the trusted roots, which the cameras' app pins."""
        return tuple(each.fingerprint(hashes.SHA256()).hex() for each in self.roots)

    def take(self, text: bytes) -> None:
        """Verify a bundle, unless it was taken before. Raises BundleError."""
        bundle = self._verify(text)
        if bundle.bundle_id in self._taken:
            return
        self._taken.add(bundle.bundle_id)
        self._waiting.append(bundle)
        self.certificates.add(bundle.certificate_serial)
        issuer = x509.load_der_x509_certificate(
            parse_bundle(text).content.device_certificate_chain[1]
        )
        name = str(issuer.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        self.issuers[name] = self.issuers.get(name, 0) + 1

    def _verify(self, text: bytes) -> VerifiedBundle:
        """Verify a bundle. After a leap of the clock, wait for a list that the authority signs."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return verify_bundle(text, root=self.roots, now=datetime.now(UTC), crl=self._lists)
            except RevocationUnknownError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def validate(self) -> None:
        """Validate the tokens of all bundles that wait. Fails unless each passes.

        An authority that is slow has given no verdict: it is asked again, as by any caller.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with AuthorityClient(self._url, plaintext=True) as authority:
            while self._waiting:
                assert time.monotonic() < deadline, "the authority gives no verdicts"
                tokens = [each.camera_token for each in self._waiting]
                self._settle(authority.validate_many(tokens))

    def _settle(self, outcomes: list[Outcome]) -> None:
        waiting = []
        for bundle, outcome in zip(self._waiting, outcomes, strict=True):
            if isinstance(outcome, Indeterminate):
                waiting.append(bundle)
                continue
            assert isinstance(outcome, Pass), (bundle, outcome)
            assert outcome.device_serial == bundle.device_serial
            self.pictures += 1
        self._waiting = waiting

    def follow_roots(self) -> None:
        """Trust the roots that a trusted root vouches for, and forget those that have ended."""
        now = datetime.now(UTC)
        content = self._get("/pki/roots.pem")
        # Only a list that is new is verified: the root that has signed it may have ended since.
        if content != self._roots_list:
            self._roots_list = self._verified(content)
        listed = x509.load_pem_x509_certificates(self._roots_list)
        known = {each.fingerprint(hashes.SHA256()): each for each in [*self.roots, *listed]}
        self.roots = [each for each in known.values() if each.not_valid_after_utc > now]
        self._lists.root_lists = {self._list_of(each): each for each in self.roots}

    def _verified(self, content: bytes) -> bytes:
        """Return a list of roots as far as a trusted root has signed it, which is the whole."""
        listed, signature = self._folder / "roots.pem", self._folder / "roots.pem.p7s"
        listed.write_bytes(content)
        signature.write_bytes(self._get("/pki/roots.pem.p7s"))
        pinned, trusted = self._folder / "pinned.pem", self._folder / "trusted.pem"
        pinned.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in self.roots))
        given: list[str | Path] = [
            "-in",
            signature,
            "-content",
            listed,
            "-CAfile",
            pinned,
        ]
        verify = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-purpose", "any"]
        ran = subprocess.run(
            [*verify, *given, "-out", trusted], check=False, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        return trusted.read_bytes()

    def _list_of(self, root: x509.Certificate) -> str:
        number = 1
        while not same_name(self._root(number).subject, root.subject):
            number += 1
        return "/pki/root.crl" if number == 1 else f"/pki/ca/root-{number}.crl"

    def _root(self, number: int) -> x509.Certificate:
        name = "root" if number == 1 else f"root-{number}"
        return x509.load_der_x509_certificate(self._get(f"/pki/ca/{name}.crt"))

    def _get(self, path: str) -> bytes:
        response = self._http.get(path, headers={"Connection": "close"})
        assert response.status_code == httpx2.codes.OK, (path, response.text)
        return response.content
