"""The files of all CAs over HTTP, while a server runs through a rotation and a new root."""

import json
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID

from tests.support.authorities import openssl
from tests.support.cameras.camera import Camera
from tests.support.pki.crls import fetch_crl
from tests.support.problems import assert_problem
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, start, wait_until

PUBLIC = "https://sma.example.org"


def act(running: Running, *arguments: str) -> dict[str, object]:
    """Run a command of `sma ca` beside the server."""
    ran = sma("ca", *arguments, "--yes", "--json", environ=running.environ)
    assert ran.returncode == 0, ran.stderr
    done: dict[str, object] = json.loads(ran.stdout)
    return done


def addresses_in(pem: str) -> tuple[str, str]:
    """Return the URLs of the CRL and of the issuer in a certificate."""
    extensions = x509.load_pem_x509_certificate(pem.encode()).extensions
    [point] = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    access = extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    issuers = [
        each.access_location.value
        for each in access
        if each.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    ]
    assert point.full_name is not None
    return str(point.full_name[0].value), str(issuers[0])


def path_of(url: str) -> str:
    """Return the path of a URL in a certificate."""
    assert url.startswith(PUBLIC)
    return url.removeprefix(PUBLIC)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_server_follows_the_acts(tmp_path: Path, kind: str, postgres_url: str) -> None:
    """Certificates have the addresses of their own issuer, and these are served."""
    url = "sqlite:" if kind == "sqlite" else postgres_url
    running = start(tmp_path / "data", url, SMA_TABLES="50", SMA_PUBLIC_URL=PUBLIC)
    with running.server, running.client() as client:
        first = Camera.provisioned(client, "first").response
        crl_url, issuer_url = addresses_in(first["device_certificate"])
        assert (path_of(crl_url), path_of(issuer_url)) == (
            "/pki/intermediate.crl",
            "/pki/intermediate.crt",
        )
        act(running, "rotate")
        act(running, "roll-root")
        third = Camera.provisioned(client, "third").response
        crl_path, issuer_path = map(path_of, addresses_in(third["device_certificate"]))
        wait_until(lambda: client.get(issuer_path).status_code == 200, 10)
        leaf = x509.load_pem_x509_certificate(third["device_certificate"].encode())
        issuer = x509.load_der_x509_certificate(client.get(issuer_path).content)
        leaf.verify_directly_issued_by(issuer)
        assert issuer == x509.load_pem_x509_certificate(third["certificate_chain"][0].encode())
        crl = fetch_crl(client, crl_path)
        assert crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
        # The first CAs are at their addresses for ever.
        intermediate, root = (
            x509.load_der_x509_certificate(client.get(f"/pki/{name}.crt").content)
            for name in ("intermediate", "root")
        )
        assert [intermediate, root] == [
            x509.load_pem_x509_certificate(each.encode()) for each in first["certificate_chain"]
        ]
        assert fetch_crl(client, "/pki/root.crl").issuer == root.subject
        assert fetch_crl(client, "/pki/ca/root-2.crl").issuer == issuer.issuer
        check_chains(client, tmp_path, third["device_certificate"])
        check_roots(client, tmp_path, root)


def check_chains(client: httpx2.Client, folder: Path, leaf: str) -> None:
    """What is served is enough for a verifier that trusts either root."""
    answer = client.get("/pki/ca/intermediate-3.chain.pem")
    assert answer.headers["content-type"] == "application/x-pem-file"
    for name, text in (("leaf", leaf), ("chain", answer.text)):
        (folder / name).write_text(text)
    for root in ("root", "root-2"):
        trusted = x509.load_der_x509_certificate(client.get(f"/pki/ca/{root}.crt").content)
        (folder / "trusted").write_bytes(trusted.public_bytes(Encoding.PEM))
        ran = openssl(
            *("verify", "-x509_strict", "-no-CApath", "-no-CAstore"),
            *("-CAfile", folder / "trusted", "-untrusted", folder / "chain", folder / "leaf"),
        )
        assert ran.returncode == 0, ran.stderr
    etag = answer.headers["etag"]
    again = client.get("/pki/ca/intermediate-3.chain.pem", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")


def check_roots(client: httpx2.Client, folder: Path, root: x509.Certificate) -> None:
    """The list of roots is signed by the first one."""
    for name in ("roots.pem", "roots.pem.p7s"):
        answer = client.get(f"/pki/{name}")
        assert answer.headers["cache-control"] == "no-cache"
        (folder / name).write_bytes(answer.content)
    assert len(x509.load_pem_x509_certificates((folder / "roots.pem").read_bytes())) == 2
    (folder / "pinned.pem").write_bytes(root.public_bytes(Encoding.PEM))
    ran = openssl(
        *("cms", "-verify", "-binary", "-inform", "DER", "-in", folder / "roots.pem.p7s"),
        *("-content", folder / "roots.pem", "-CAfile", folder / "pinned.pem"),
        *("-purpose", "any", "-out", folder / "verified"),
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    "file",
    [
        *("root.key", "intermediate.key", "root", "root.crt.pem", "nothing.crt", "chain.pem"),
        *(
            "root/%2e%2e/root.crt",
            "..",
            "root.crt/",
            "%72oot.crt",
            "root.crt%0A",
            "ROOT.crt",
            ".crt",
        ),
        *("intermediate-2.crl", "x" * 5_000 + ".crt"),
    ],
)
def test_what_is_not_there_is_404(sqlite_client: httpx2.Client, file: str) -> None:
    """Threat 32: only the exact names of files that exist."""
    request = sqlite_client.build_request("GET", f"/pki/ca/{file}")
    assert_problem(sqlite_client.send(request), 404)
