"""`sma serve` with TLS: what it refuses, what it warns of, and `--tls-self`."""

import json
import re
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark_sma.pki import local_tls
from tests.integration.cli.conftest import Place, assert_refused
from tests.support.http.tls import DAY, TestCa, key_pem
from tests.support.programs.server import SMA, Server, server_environ

CA_FILES = "tls-self"


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    """A CA of this test's own."""
    return TestCa(tmp_path / "ca")


# --- files that cannot be used


def test_what_belongs_together_is_asked_for(empty: Place, ca: TestCa) -> None:
    """One sentence each, and nothing is founded."""
    issued = ca.issue("server")
    certificate, key = str(issued.certificate_file), str(issued.key_file)
    client_ca = str(ca.file)
    assert_refused(empty.sma("serve", "--tls-cert", certificate), 3, "--tls-key")
    assert_refused(empty.sma("serve", "--tls-key", key), 3, "--tls-cert")
    assert_refused(empty.sma("serve", "--tls-client-ca", client_ca), 3, "--tls-cert", "--tls-self")
    both = ("--tls-self", "--tls-cert", certificate, "--tls-key", key)
    assert_refused(empty.sma("serve", *both), 3, "--tls-self")
    assert not empty.data_dir.exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read(empty: Place, ca: TestCa, mode: int) -> None:
    """Threat 29: refused, with the remedy."""
    issued = ca.issue("server")
    issued.key_file.chmod(mode)
    assert_refused(empty.sma("serve", settings=issued.settings), 3, f"chmod 600 {issued.key_file}")


def test_files_that_cannot_be_used(empty: Place, ca: TestCa) -> None:
    """Each is named, with what is wrong with it; a passphrase is never asked for."""
    issued, other = ca.issue("server"), ca.issue("other")
    mismatch = issued.settings | {"SMA_TLS_KEY": str(other.key_file)}
    refused = empty.sma("serve", settings=mismatch)
    assert_refused(refused, 3, str(other.key_file), "is not that of the certificate")

    missing = issued.settings | {"SMA_TLS_CERT": "nowhere.crt"}
    assert_refused(empty.sma("serve", settings=missing), 3, "nowhere.crt cannot be read")
    missing = issued.settings | {"SMA_TLS_KEY": "nowhere.key"}
    assert_refused(empty.sma("serve", settings=missing), 3, "nowhere.key does not exist")

    swapped = {"SMA_TLS_CERT": str(other.key_file), "SMA_TLS_KEY": str(issued.key_file)}
    assert_refused(empty.sma("serve", settings=swapped), 3, "holds no certificate in PEM")
    clients = issued.settings | {"SMA_TLS_CLIENT_CA": str(other.key_file)}
    assert_refused(empty.sma("serve", settings=clients), 3, "holds no certificate in PEM")

    other.key_file.write_bytes(b"-----BEGIN PRIVATE KEY-----\nnonsense\n")
    assert_refused(empty.sma("serve", settings=mismatch), 3, "holds no private key in PEM")
    other.key_file.write_bytes(key_pem(issued.key, b"secret passphrase"))
    assert_refused(empty.sma("serve", settings=mismatch), 3, "is encrypted", "without a passphrase")

    weak = ca.issue("weak")
    made = ("-keyout", weak.key_file, "-out", weak.certificate_file)
    command = ("openssl", "req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=weak")
    subprocess.run([*command, *made], check=True, capture_output=True)
    assert_refused(empty.sma("serve", settings=weak.settings), 3, "weak.crt", "too small")
    assert not empty.data_dir.exists()


def test_a_certificate_out_of_its_time_warns(place: Place, ca: TestCa) -> None:
    """It serves, since the clock may be wrong, and says what clients will say."""
    for name, begin, end, word in (
        ("old", -3 * DAY, -DAY, "expired on"),
        ("early", DAY, 2 * DAY, "is not valid before"),
    ):
        environ = ca.issue(name, begin=begin, end=end).settings
        with Server(place.data_dir, environ=environ) as server:
            warnings = [line for line in server.said().splitlines() if "WARNING" in line]
            assert word in warnings[-1]


# --- proxies


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("10.0.0.0/8,proxy.example.org", "proxy.example.org"),
        ("10.0.0.1/8", "host bits"),
        ("0.0.0.0/0", "trusts every address"),
        ("::/0", "trusts every address"),
    ],
)
def test_proxies_that_cannot_be_trusted(empty: Place, value: str, word: str) -> None:
    """Threat 23: names and whole worlds are refused."""
    refused = empty.sma("serve", settings={"SMA_TRUSTED_PROXIES": value})
    assert_refused(refused, 3, "SMA_TRUSTED_PROXIES", word)


def test_a_proxy_makes_loopback_public(place: Place) -> None:
    """Threat 22: who comes through a proxy is not on this machine, so nothing is open unsaid."""
    trusting = ("serve", "--port", "0", "--trusted-proxies", "127.0.0.1")
    assert_refused(place.sma(*trusting), 3, "Behind a proxy", "access keys", "sma keys create")
    with Server(place.data_dir, *trusting[3:], "--access", "open") as server:
        assert "WARNING: access is open" in server.said()


def test_no_tls_beyond_this_machine_warns(place: Place) -> None:
    """Threat 22. `127.1` means loopback, but is not known to, so that nothing is open here."""
    arguments = ("--host", "127.1", "--access", "open")
    with Server(place.data_dir, *arguments) as server:
        assert "WARNING: there is no TLS on 127.1" in server.said()
    with Server(place.data_dir, *arguments, "--trusted-proxies", "10.0.0.1") as server:
        said = server.said().rpartition("Stopped.")[2]
        assert "there is no TLS" not in said


# --- a certificate for this machine


def test_tls_self_prints_a_command_that_works(place: Place) -> None:
    """The URL, where the CA is, and a curl line that can be pasted."""
    running = subprocess.Popen(
        [*SMA, "serve", "--tls-self", "--port", "0"],
        env=server_environ(place.data_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stderr is not None
    deadline = threading.Timer(60, running.kill)
    deadline.start()
    try:
        said = ""
        for line in running.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        assert re.search(r"listening on +https://127\.0\.0\.1:\d+\n", said), said
        assert str(place.data_dir / CA_FILES / "ca.crt") in said
        [command] = re.findall(r"curl --cacert .*", said)
        for typed in (command, command.replace("127.0.0.1", "localhost")):
            answer = subprocess.run(
                ["sh", "-c", typed.replace("curl ", "curl -sS --noproxy '*' ", 1)],
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
            assert json.loads(answer.stdout)["status"] == "healthy"
    finally:
        deadline.cancel()
        running.terminate()
        running.wait(60)
        noted = running.stderr.read()
        running.stdout.close()
        running.stderr.close()
    assert "A local CA was created for TLS" in noted


def certificates(place: Place) -> tuple[x509.Certificate, x509.Certificate]:
    """The local CA and the server's certificate."""
    folder = place.data_dir / CA_FILES
    ca, server = (
        x509.load_pem_x509_certificate((folder / name).read_bytes())
        for name in ("ca.crt", "server.pem")
    )
    return ca, server


def run_once(place: Place, *arguments: str) -> str:
    """Start and stop a server, and return what it said on stderr this time."""
    place.data_dir.with_name(f"{place.data_dir.name}.log").unlink(missing_ok=True)
    with Server(place.data_dir, "--tls-self", *arguments) as server:
        return server.said()


def test_the_local_ca_is_kept_and_the_certificate_renewed(place: Place) -> None:
    """Threat 29: private files; the CA stays, and what is broken or near its end is made anew."""
    folder = place.data_dir / CA_FILES
    assert "A local CA was created" in run_once(place)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    ca, server = certificates(place)
    assert "A local CA was created" not in run_once(place)
    assert certificates(place) == (ca, server)

    key = serialization.load_pem_private_key((folder / "ca.pem").read_bytes(), None)
    own = serialization.load_pem_private_key((folder / "server.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(own, ec.EllipticCurvePrivateKey)
    then = datetime.now(UTC) - local_tls.SERVER_VALIDITY + timedelta(days=29)
    ending = local_tls.server_certificate(
        own.public_key(), local_tls.THIS_MACHINE, ca=ca, ca_key=key, now=then, serial_number=7
    )
    pem = key_pem(own) + ending.public_bytes(serialization.Encoding.PEM)
    for spoiled in (pem, b"half a fi", b""):
        (folder / "server.pem").write_bytes(spoiled)
        assert "A local CA was created" not in run_once(place)
        renewed_under, renewed = certificates(place)
        assert renewed_under == ca
        assert renewed.not_valid_after_utc > datetime.now(UTC) + timedelta(days=80)

    (folder / "ca.crt").unlink()
    run_once(place)
    assert certificates(place)[0] == ca
    (folder / "ca.pem").write_bytes(b"half a fi")
    assert "A local CA was created" in run_once(place)
    assert certificates(place)[0] != ca

    (folder / "ca.pem").chmod(0o640)
    assert_refused(place.sma("serve", "--tls-self", "--port", "0"), 3, "chmod 600")


def test_another_host_gets_its_name(place: Place) -> None:
    """The CA can name nothing else, so a host that it cannot name needs another CA."""
    run_once(place)
    first, _ = certificates(place)
    assert "A local CA was created" in run_once(place, "--host", "127.0.0.5")
    second, server = certificates(place)
    assert first != second
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == [
        "127.0.0.1",
        "::1",
        "127.0.0.5",
    ]
    assert "A local CA was created" not in run_once(place)  # this one names 127.0.0.1 as well


def test_openssl_holds_the_local_ca_to_its_names(place: Place, tmp_path: Path) -> None:
    """Threat 22: who takes the CA's key cannot pose as another site."""
    run_once(place)
    folder = place.data_dir / CA_FILES
    ca, _ = certificates(place)
    key = serialization.load_pem_private_key((folder / "ca.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    forged = local_tls.server_certificate(
        key.public_key(),
        ["example.org"],
        ca=ca,
        ca_key=key,
        now=datetime.now(UTC),
        serial_number=9,
    )
    (tmp_path / "forged.pem").write_bytes(forged.public_bytes(serialization.Encoding.PEM))

    def verify(file: Path, host: str) -> str:
        judged = subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
                *("-CAfile", str(folder / "ca.crt"), "-verify_hostname", host, str(file)),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return judged.stdout + judged.stderr

    assert "server.pem: OK" in verify(folder / "server.pem", "localhost")
    assert "permitted subtree violation" in verify(tmp_path / "forged.pem", "example.org")
