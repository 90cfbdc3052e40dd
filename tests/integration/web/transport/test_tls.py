"""TLS on real sockets: what is negotiated, who is let in, and certificates that change."""

import base64
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import copy
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.http.echo_scope import echoing
from tests.support.http.tls import DAY, Issued, TestCa
from tests.support.programs.commands import sma
from tests.support.programs.running import (
    Running,
    new_serial,
    start,
    wait_until,
    workers_of,
)
from tests.support.programs.server import Server, server_environ

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> TestCa:
    """The CA that servers of this module, and their clients, have certificates of."""
    return TestCa(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def encrypted(ca: TestCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with TLS that also asks for client certificates."""
    environ = ca.issue("module").settings | {"SMA_TLS_CLIENT_CA": str(ca.file)}
    place = tmp_path_factory.mktemp("encrypted") / "data"
    with start(place, "sqlite:", "--prototype", **environ).server as server:
        yield Running(server, "sqlite:")


def port_of(running: Running) -> int:
    """The port that a server listens on."""
    return int(running.server.url.rpartition(":")[2])


def s_client(port: int, *arguments: str, ca_file: Path) -> str:
    """What `openssl s_client` says of a server."""
    asked = subprocess.run(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(ca_file)),
            *("-verify_return_error", "-x509_strict", "-verify_hostname", "localhost"),
            *arguments,
        ],
        input="",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return asked.stdout + asked.stderr


def connect(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS connection of one's own."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    return context.wrap_socket(plain, server_hostname="localhost")


def served_serial(port: int, ca: TestCa) -> int:
    """The serial number of the certificate that a new connection gets."""
    with connect(port, ca.client_context()) as connection:
        der = connection.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def _asked(port: int, context: ssl.SSLContext) -> bytes:
    """The answer to one request on a connection of its own."""
    with connect(port, context) as connection:
        connection.sendall(LIVE)
        answer = connection.recv(65_536)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ConnectionAbortedError(answer)
    return answer


def _kept(port: int, context: ssl.SSLContext) -> Callable[[], bytes]:
    """The same, all on one connection."""
    connection = connect(port, context)

    def ask() -> bytes:
        connection.sendall(LIVE)
        answer = connection.recv(65_536)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ConnectionAbortedError(answer)
        return answer

    return ask


def _load(
    ask: Callable[[], bytes],
    failures: list[BaseException],
    counts: list[int],
    slot: int,
    done: threading.Event,
) -> None:
    while not done.is_set():
        try:
            ask()
            counts[slot] += 1
        except OSError as failure:
            failures.append(failure)
            return


def _all_serve(port: int, ca: TestCa, serial: int) -> bool:
    return {served_serial(port, ca) for _ in range(8)} == {serial}  # each worker answers some


def _asked_status(client: httpx2.Client, url: str, body: dict[str, Any]) -> int:
    asked = client.get(url) if url.endswith("/stats") else client.post(url, json=body)
    return asked.status_code


def _said_times(server: Server, words: str, times: int) -> bool:
    return server.said().count(words) == times


def _is_refused(port: int, context: ssl.SSLContext) -> bool:
    try:
        _asked(port, context)
    except (ssl.SSLError, ConnectionError):
        return True
    return False


def _scope_in(answer: bytes) -> dict[str, Any]:
    tls: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["tls"]
    return tls


# --- what is negotiated


@pytest.mark.parametrize(("version", "name"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_openssl_is_content(encrypted: Running, ca: TestCa, version: str, name: str) -> None:
    """Threat 22: OpenSSL judges chain, name and version."""
    said = s_client(port_of(encrypted), version, "-alpn", "h2,http/1.1", ca_file=ca.file)
    assert "Verify return code: 0 (ok)" in said
    assert f"New, {name}" in said
    assert "ALPN protocol: http/1.1" in said
    assert re.search(r"Cipher is (TLS_|ECDHE-ECDSA-(AES|CHACHA20))", said)


@pytest.mark.parametrize(
    "arguments",
    [
        ("-tls1", "-cipher", "ALL:@SECLEVEL=0"),
        ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "AES128-SHA:AES256-GCM-SHA384:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0"),
        ("-tls1_2", "-cipher", "aNULL:eNULL:@SECLEVEL=0"),
    ],
)
def test_what_is_weak_is_not_negotiated(
    encrypted: Running, ca: TestCa, arguments: tuple[str, ...]
) -> None:
    """Threat 22: no old version, no cipher without forward secrecy and authentication."""
    said = s_client(port_of(encrypted), *arguments, ca_file=ca.file)
    assert "Cipher is (NONE)" in said
    assert re.search(r"has read 0 bytes and written [1-9]", said)


def test_curl_talks_to_it(encrypted: Running, ca: TestCa) -> None:
    """What an operator would type."""
    url = encrypted.server.url
    assert url.startswith("https://127.0.0.1:")
    asked = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--cacert", str(ca.file), f"{url}/health"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert json.loads(asked.stdout)["status"] == "healthy"


def test_who_does_not_speak_tls_disturbs_nobody(encrypted: Running, ca: TestCa) -> None:
    """Threat 28: nonsense, silence and half a handshake end alone, and fill no log."""
    before = said_but_requests(encrypted)
    silent = socket.create_connection(("127.0.0.1", port_of(encrypted)), timeout=10)
    for nonsense in (LIVE, b"\x16\x03\x01\x02\x00", b"\0" * 20_000, b""):
        with socket.create_connection(("127.0.0.1", port_of(encrypted)), timeout=10) as client:
            client.sendall(nonsense)
            client.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                client.recv(100)
    with connect(port_of(encrypted), ca.client_context()) as client:
        client.sendall(LIVE)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    silent.close()
    time.sleep(0.3)  # lines of requests are written a moment later
    assert said_but_requests(encrypted) == before


def said_but_requests(running: Running) -> list[str]:
    """The log without its line for each request."""
    said = running.server.said().splitlines()
    return [line for line in said if '"event":"request"' not in line]


def test_a_camera_over_tls(encrypted: Running, ca: TestCa) -> None:
    """The direct way of a camera token, and ASGI's, over TLS: large answers arrive whole."""
    with httpx2.Client(
        base_url=encrypted.server.url, verify=ca.client_context(), trust_env=False
    ) as client:
        camera = Camera.provisioned(client, new_serial())
        token = wire(camera.token(key_index=1))
        assert client.post(VALIDATE, json=token).json()["validation_result"] == "PASS"
        many = client.post(f"{VALIDATE}/batch", json={"tokens": [token] * 1000}).json()["results"]
        assert len(many) == 1000
        assert len(client.get("/openapi.json", headers={"Connection": "close"}).content) > 20_000


# --- client certificates


def told_scope(port: int, context: ssl.SSLContext) -> dict[str, Any]:
    """What the application knows of this client."""
    answer = httpx2.get(f"https://localhost:{port}/", verify=context, trust_env=False)
    told: dict[str, Any] = answer.json()
    return told


def test_the_application_gets_the_clients_certificate(ca: TestCa) -> None:
    """A verified client certificate stands in the ASGI scope, by connection; else None."""
    environ = ca.issue("echo").settings | {"SMA_TLS_CLIENT_CA": str(ca.file)}
    shown = ca.issue("aggregator")
    with echoing(**environ) as echo:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ca.client_context(shown)
            context.minimum_version = context.maximum_version = version
            tls = told_scope(echo.port, context)["tls"]
            der = base64.b64decode(tls["client_cert_der"])
            assert der == shown.certificate.public_bytes(serialization.Encoding.DER)
            assert tls["tls_version"] == {"TLSv1_2": 0x0303, "TLSv1_3": 0x0304}[version.name]
        without = told_scope(echo.port, ca.client_context())
        assert without["scheme"] == "https"
        assert without["tls"]["client_cert_der"] is None


def test_a_resumed_session_keeps_the_certificate(ca: TestCa) -> None:
    """A client that resumes shows nothing anew, and is the same client."""
    environ = ca.issue("echo2").settings | {"SMA_TLS_CLIENT_CA": str(ca.file)}
    context = ca.client_context(ca.issue("resuming"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with echoing(**environ) as echo:
        with connect(echo.port, context) as first:
            first.sendall(request)
            told = first.recv(65_536)
            session = first.session
        plain = socket.create_connection(("127.0.0.1", echo.port), timeout=10)
        with context.wrap_socket(plain, server_hostname="localhost", session=session) as second:
            assert second.session_reused
            second.sendall(request)
            again = second.recv(65_536)
    assert _scope_in(told)["client_cert_der"] is not None
    assert _scope_in(told) == _scope_in(again)


def test_without_a_ca_for_clients_none_is_asked_for(ca: TestCa) -> None:
    """A certificate that nobody verified is never passed on."""
    shown = ca.issue("unasked")
    with echoing(**ca.issue("echo3").settings) as echo:
        assert told_scope(echo.port, ca.client_context(shown))["tls"]["client_cert_der"] is None


def test_a_client_certificate_opens_what_its_key_does(ca: TestCa, tmp_path: Path) -> None:
    """Threat 22: a verified certificate stands for its key's record, and no other one does."""
    known, unknown = ca.issue("known"), ca.issue("unknown")
    environ = ca.issue("keyed").settings | {"SMA_TLS_CLIENT_CA": str(ca.file)}
    place = server_environ(tmp_path / "data") | {"SMA_TABLES": "50"}
    for command in (
        ("init",),
        (
            *("keys", "create", "newsroom-1", "--scope", "validate"),
            *("--client-cert", str(known.certificate_file)),
        ),
    ):
        done = sma(*command, environ=place)
        assert done.returncode == 0, done.stderr
    running = start(tmp_path / "data", "sqlite:", "--access", "keys", **environ, SMA_TABLES="50")
    with running.server as server:
        body = {"encrypted_nuc_hash": "a" * 96, "table_id": 0, "key_index": 0, "nonce": "a" * 24}
        for shown, path, status in (
            (known, VALIDATE, 200),
            (known, "/stats", 403),
            (unknown, VALIDATE, 401),
            (None, VALIDATE, 401),
        ):
            with httpx2.Client(verify=ca.client_context(shown), trust_env=False) as client:
                assert _asked_status(client, f"{server.url}{path}", body) == status


def test_a_certificate_that_does_not_verify_ends_the_handshake(
    encrypted: Running, ca: TestCa, tmp_path: Path
) -> None:
    """Threat 22: of another CA, expired, or made for servers: nobody gets in with it."""
    stranger = TestCa(tmp_path, "Stranger CA").issue("stranger")
    expired = ca.issue("expired", begin=-2 * DAY, end=-DAY)
    server = ca.issue_for_servers_only("server")
    for shown in (stranger, expired, server):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _asked(port_of(encrypted), ca.client_context(shown))
    good = ca.issue("good")
    assert _asked(port_of(encrypted), ca.client_context(good)).startswith(b"HTTP/1.1 200")


# --- certificates that change


def install(new: Issued, place: Issued) -> None:
    """Put another certificate where a server reads its own, each file at once."""
    for source, target in (
        (new.key_file, place.key_file),
        (new.certificate_file, place.certificate_file),
    ):
        beside = target.with_suffix(".new")
        beside.touch(0o600)
        beside.write_bytes(source.read_bytes())
        beside.replace(target)


def _has_said(server: Server, line: str, times: int) -> bool:
    """Return whether the server has written a line at least so many times."""
    return server.said().count(line) >= times


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_under_load_fails_no_request(ca: TestCa, tmp_path: Path, workers: int) -> None:
    """SIGHUP: who is connected goes on, new connections get the new certificate, nobody waits."""
    own = ca.issue(f"served-{workers}")
    following = [ca.issue(f"next-{workers}-{number}", rsa=number % 2 == 0) for number in range(4)]
    running = start(
        tmp_path / "data", "sqlite:", "--prototype", "--workers", str(workers), **own.settings
    )
    with running.server as server:
        port, context = port_of(running), ca.client_context()
        before = workers_of(running)
        failures: list[BaseException] = []
        counts = [0, 0]
        done = threading.Event()
        load = [
            threading.Thread(target=_load, args=(ask, failures, counts, slot, done))
            for slot, ask in enumerate((_kept(port, context), lambda: _asked(port, context)))
        ]
        for each in load:
            each.start()
        logged = f"TLS uses {own.certificate_file} as it is now"
        for reloads, following_one in enumerate(following, 1):
            install(following_one, own)
            server.process.send_signal(signal.SIGHUP)
            expected = following_one.certificate.serial_number
            wait_until(partial(_all_serve, port, ca, expected), 20)
            # Connections may all reach one worker. A signal that comes before the other worker has
            # taken the last one is merged with it, so wait for the log of every worker.
            wait_until(partial(_has_said, server, logged, reloads * workers), 20)
        done.set()
        for each in load:
            each.join(30)
        assert failures == []
        assert min(counts) > 20
        assert workers_of(running) == before
        assert "Traceback" not in server.said()
        assert server.said().count(logged) == 4 * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_certificate_is_not_taken(ca: TestCa, tmp_path: Path, workers: int) -> None:
    """Threat 29 and more: the old one stays until a good one comes; the log says why."""
    own = ca.issue(f"kept-{workers}")
    other = ca.issue(f"other-{workers}")
    running = start(
        tmp_path / "data", "sqlite:", "--prototype", "--workers", str(workers), **own.settings
    )
    with running.server as server:
        serial = own.certificate.serial_number
        spoil: list[tuple[str, Callable[[], object]]] = [
            ("is not that of", partial(copy, other.certificate_file, own.certificate_file)),
            ("holds no certificate", partial(own.certificate_file.write_bytes, b"half a fi")),
            ("cannot be read", own.certificate_file.unlink),
            ("is not that of", partial(copy, other.certificate_file, own.certificate_file)),
            ("does not exist", own.key_file.unlink),
        ]
        for number, (word, spoiled) in enumerate(spoil, start=1):
            spoiled()
            server.process.send_signal(signal.SIGHUP)
            wait_until(partial(_said_times, server, "TLS goes on with", number * workers), 20)
            assert word in server.said().splitlines()[-1]
            assert served_serial(port_of(running), ca) == serial
        install(other, own)
        own.key_file.chmod(0o644)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "chmod 600" in server.said(), 20)
        assert served_serial(port_of(running), ca) == serial
        own.key_file.chmod(0o600)
        server.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: served_serial(port_of(running), ca) == other.certificate.serial_number, 20
        )
        assert "Traceback" not in server.said()


def test_another_ca_for_clients_holds_at_once(ca: TestCa, tmp_path: Path) -> None:
    """Threat 22: who is no longer trusted does not get back in, by a resumed session either."""
    clients = TestCa(tmp_path / "clients", "Clients")
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes(clients.file.read_bytes())
    own = ca.issue("changing")
    context = ca.client_context(clients.issue("client"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        echoing(**own.settings, SMA_TLS_CLIENT_CA=str(trusted)) as echo,
        connect(echo.port, context) as first,
    ):
        session = first.session
        trusted.write_bytes(ca.file.read_bytes())
        os.kill(echo.pid, signal.SIGHUP)
        wait_until(lambda: _is_refused(echo.port, context), 20)
        with (
            socket.create_connection(("127.0.0.1", echo.port), timeout=10) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(plain, server_hostname="localhost", session=session)
        first.sendall(LIVE)
        assert first.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_hangup_without_tls_ends_nothing(tmp_path: Path, workers: str) -> None:
    """SIGHUP to the server, and to its workers as a closed terminal sends it."""
    running = start(tmp_path / "data", "sqlite:", "--prototype", "--workers", workers)
    with running.server as server, running.client() as client:
        before = workers_of(running)
        for pid in (server.process.pid, *before):
            os.kill(pid, signal.SIGHUP)
        time.sleep(2)
        assert client.get("/health").status_code == 200
        assert workers_of(running) == before
        assert server.terminate() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_stops_although_a_client_keeps_its_connection(
    ca: TestCa, tmp_path: Path, workers: str
) -> None:
    """Threat 31: a pool that does not look at an idle connection holds nobody up for long."""
    environ = ca.issue(f"stopping-{workers}").settings
    running = start(tmp_path / "data", "sqlite:", "--prototype", "--workers", workers, **environ)
    with running.server as server, connect(port_of(running), ca.client_context()) as idle:
        idle.sendall(LIVE)
        assert idle.recv(1000).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - began < 15
