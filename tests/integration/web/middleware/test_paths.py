"""One reading of a path: however it is spelled, no two parts of the server take it differently."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from birthmark_sma.web.routes import (
    OCSP,
    OCSP_GET,
    RENEWAL_INFO,
    TABLE,
    Credentials,
    find_routes,
)
from tests.integration.web.middleware.test_authentication import PLACES, ROUTES
from tests.integration.web.transport.test_connections import Connection
from tests.support.access_keys import start_with_keys
from tests.support.cameras.camera import (
    PROVISION,
    VALIDATE,
    Camera,
    provision_body,
    wire,
)
from tests.support.programs.running import Running, new_serial

CONTROLS = ("%00", "%0A", "%0D", "%1F", "%20", "%7F", "%C2%80", "%C2%85")
"""Encoded: C0, the space, DEL, and C1 as UTF-8."""


def spellings(path: str) -> Iterator[str]:
    """Other ways to write a path, each of which some parser reads as the path itself."""
    last = path.rstrip("/")[-1:] or "/"
    for control in CONTROLS:
        yield path + control
        yield control + path[1:] if path == "/" else f"/{control}{path[1:]}"
    yield f"{path}/"
    yield f"/{path}"
    yield f"{path};a=b"
    yield f"{path}/."
    yield f"/x/..{path}"
    yield f"/.{path}"
    yield f"{path}%2F"
    yield f"{path}%23"
    yield f"{path}%3Fa=b"
    yield path.replace("/", "%2F")
    yield f"{path[: path.rindex(last)]}%{ord(last):02X}"
    yield f"{path.upper()}X" if path == "/" else path.upper()
    yield path.replace("/", "\\")
    yield f"{path}\\"


class Raw:
    """Sends request lines as they stand, on one connection while it lasts."""

    def __init__(self, running: Running) -> None:
        place = urlsplit(running.server.url)
        self._address = (place.hostname, place.port)
        self._connection: Connection | None = None

    def ask(self, line: str, key: str | None, body: bytes = b"{}") -> int:
        """Send a request, and return the status."""
        shown = "" if key is None else f"Authorization: Bearer {key}\r\n"
        head = (
            f"{line} HTTP/1.1\r\nHost: localhost\r\n{shown}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        if self._connection is None:
            self._connection = Connection(socket.create_connection(self._address, timeout=30))
        self._connection.send(head.encode("latin-1") + body)
        status, headers, _ = self._connection.answer(bodiless=line.startswith("HEAD"))
        if headers.get("connection") == "close":
            self._connection.socket.close()
            self._connection = None
        return status


@pytest.fixture(scope="module")
def locked(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Running, dict[str, str]]]:
    """A server that asks for keys, and one key of each scope."""
    directory: Path = tmp_path_factory.mktemp("paths")
    running, keys = start_with_keys(directory / "data", "sqlite:", SMA_TABLES="5")
    yield running, keys
    running.server.close()


def test_other_spellings_of_every_route_are_404(locked: tuple[Running, dict[str, str]]) -> None:
    """Threat 32: with any key, and 401 with none; nothing is done and nothing recorded.

    The body would be accepted at the path itself: a router that read the path in another way than
    authentication would provision a device or record a token.
    """
    running, keys = locked
    raw = Raw(running)
    with running.client(headers={"Authorization": f"Bearer {keys['provision']}"}) as client:
        camera = Camera.provisioned(client, new_serial())
    before = [running.count(name) for name in ("registered_devices", "validation_history")]
    for method, path in ROUTES:
        if path == OCSP_GET.path:
            continue  # many spellings are a request there: test_ocsp.py has those that are none
        if path.startswith("/api/v1") and "{" in path and path != RENEWAL_INFO.path:
            continue  # another name there: tests/integration/web/api/administration has those
        body = b"{}"
        if path == PROVISION:
            body = json.dumps(provision_body(new_serial())).encode()
        elif method == "POST":
            body = json.dumps(wire(camera.token())).encode()
        for spelling in set(spellings(PLACES.get(path, path))):
            found = find_routes(spelling.encode())
            assert path not in {route.path for route in found}
            if found:
                continue  # the name of a device, key or table
            for scope, key in {**keys, "none": None}.items():
                status = raw.ask(f"{method} {spelling}", key, body)
                case = f"{method} {spelling!r} with a key of scope {scope}"
                wanted = 401 if key is None else 404
                assert status == (wanted if spelling.startswith("/") else 400), case
    after = [running.count(name) for name in ("registered_devices", "validation_history")]
    assert after == before


def test_the_two_that_were_found(locked: tuple[Running, dict[str, str]]) -> None:
    """Threat 32: table keys for a key of scope admin, and a row of the audit trail beside a 500."""
    running, keys = locked
    raw = Raw(running)
    before = [running.count(name) for name in ("registered_devices", "validation_history")]
    body = json.dumps(provision_body(new_serial())).encode()
    for scope in ("admin", "validate"):
        assert raw.ask(f"POST {PROVISION}%0A", keys[scope], body) == 404
    token = {"encrypted_nuc_hash": "00" * 48, "table_id": 1, "key_index": 1, "nonce": "00" * 12}
    answer = raw.ask(f"POST {VALIDATE}%0A", keys["validate"], json.dumps(token).encode())
    assert answer == 404
    after = [running.count(name) for name in ("registered_devices", "validation_history")]
    assert after == before


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET http://localhost/health/live", 200),
        ("GET HTTP://LOCALHOST:8000/health/live?x", 200),
        ("GET http://localhost", 307),
        ("GET http://somebody@localhost/health/live", 400),
        ("GET http://localhost\\x/health/live", 400),
        ("GET ftp://localhost/health/live", 400),
        ("GET /health/live#part", 400),
        ("OPTIONS *", 401),
        ("CONNECT localhost:80", 400),
        ("get /health/live", 400),
        ("GET health/live", 400),
        ("GET /health/live\x0b", 400),
        ("GET /health/live\xe9", 400),
        ("HEAD /health/live", 200),
        ("POST /health/live", 405),
        ("OPTIONS /health/live", 405),
        ("BREW /health/live", 400),
        ("QUERY /health/live", 405),
    ],
)
def test_targets_and_methods(
    locked: tuple[Running, dict[str, str]], line: str, status: int
) -> None:
    """RFC 9112, section 3.2: the forms of a request target, without a credential."""
    assert Raw(locked[0]).ask(line, None, b"") == status


def test_the_host_in_a_target_is_the_host(running_on_sqlite: Running) -> None:
    """RFC 9112, section 3.2.2: a page of another site gains nothing by naming two hosts."""
    raw = Raw(running_on_sqlite)
    assert raw.ask("GET http://localhost/health", None) == 200
    assert raw.ask("GET http://rebound.example.org/health", None) == 421


@pytest.mark.parametrize(("method", "path"), [("PUT", PROVISION), ("PUT", VALIDATE)])
def test_a_method_that_a_route_does_not_have(
    locked: tuple[Running, dict[str, str]], method: str, path: str
) -> None:
    """A scope is that of the route; the rate limit of another method is that of all else."""
    running, keys = locked
    scope = "provision" if path == PROVISION else "validate"
    assert Raw(running).ask(f"{method} {path}", keys[scope]) == 405
    assert Raw(running).ask(f"{method} {path}", keys["admin"]) == 403


def test_probes_ignore_credentials_and_limits() -> None:
    """They, and nothing else; OCSP limits what needs a signature of its own."""
    probes = {"/health/live", "/health/ready"}
    assert {r.path for r in TABLE if r.credentials is Credentials.IGNORED} == probes
    limited_by_endpoint = {OCSP.path, OCSP_GET.path}
    assert {r.path for r in TABLE if r.limit is None} == probes | limited_by_endpoint
