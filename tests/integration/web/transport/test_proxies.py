"""Whom requests are recorded under, on real sockets: believed proxies, and everybody else.

The whole loopback network is this machine's, so that a test can come from several addresses.
"""

import json
import socket
from collections.abc import Iterator

import httpx2
import pytest

from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.http.echo_scope import echoing
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, Servers, new_serial
from tests.support.programs.server import server_environ

PROXY = "127.0.0.2"
STRANGER = "127.0.0.3"
CLIENT = "203.0.113.9"
BATCH = f"{VALIDATE}/batch"
SETTINGS = {
    "SMA_ACCESS": "open",
    "SMA_TRUSTED_PROXIES": f"{PROXY}, 10.0.0.0/8",
    "SMA_TABLES": "10",
    "SMA_KEYS_PER_TABLE": "100",
}


@pytest.fixture(scope="module")
def all_behind(
    tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str
) -> Iterator[Servers]:
    """Servers behind a proxy, which tests share."""
    folder = tmp_path_factory.mktemp("behind")
    # On SQLite too: a server behind a proxy creates no authority by itself.
    created = sma("init", environ=server_environ(folder / "sqlite") | SETTINGS)
    assert created.returncode == 0, created.stderr
    shared = Servers(folder, postgres_admin_url, **SETTINGS)
    yield shared
    shared.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def behind(request: pytest.FixtureRequest, all_behind: Servers) -> Running:
    """A server behind a proxy, on each kind of database."""
    return all_behind.get(request.param)


def recorded(running: Running, peer: str, path: str, headers: dict[str, str]) -> str | None:
    """The address that the audit trail has for a token that came this way."""
    with running.client() as direct:
        camera = Camera.provisioned(direct, new_serial())
    token = camera.token(key_index=1)
    body = wire(token) if path == VALIDATE else {"tokens": [wire(token)]}
    with running.client(peer, headers=headers) as client:
        assert client.post(path, json=body).status_code == 200
    rows = running.audit_rows(token)
    assert len(rows) == 1
    return rows[0].request_ip


@pytest.mark.parametrize("path", [VALIDATE, BATCH])
def test_audit_rows_have_the_client_behind_a_proxy(behind: Running, path: str) -> None:
    """Threat 23: the real client is recorded, whichever way the request is answered."""
    chain = {"X-Forwarded-For": f"6.6.6.6, {CLIENT}, 10.1.2.3"}
    assert recorded(behind, PROXY, path, chain) == CLIENT
    standard = {"Forwarded": 'for=6.6.6.6, for="[2001:db8::1]:80";proto=https, for=10.1.2.3'}
    assert recorded(behind, PROXY, path, standard) == "2001:db8::1"
    assert recorded(behind, PROXY, path, {"X-Forwarded-For": "nobody"}) == PROXY
    assert recorded(behind, PROXY, path, {"X-Forwarded-For": "9" * 10_000}) == PROXY
    assert recorded(behind, PROXY, path, {}) == PROXY


@pytest.mark.parametrize("path", [VALIDATE, BATCH])
def test_a_stranger_is_believed_nothing(behind: Running, path: str) -> None:
    """Threat 23: whoever is no proxy of ours is recorded under the address he has."""
    for forged in (
        {"X-Forwarded-For": CLIENT},
        {"X-Forwarded-For": PROXY},
        {"Forwarded": f"for={CLIENT}"},
        {"X-Real-IP": CLIENT},
    ):
        assert recorded(behind, STRANGER, path, forged) == STRANGER


def test_without_the_setting_nobody_is_believed(running_on_sqlite: Running) -> None:
    """Threat 23: not even this machine, which uvicorn would believe unasked."""
    forged = {"X-Forwarded-For": CLIENT, "X-Forwarded-Proto": "https"}
    assert recorded(running_on_sqlite, "127.0.0.1", VALIDATE, forged) == "127.0.0.1"


def test_requests_on_one_connection_are_told_apart() -> None:
    """Threat 23: a proxy sends the requests of many clients, also at once, on one connection."""
    heads = [
        f"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.{n}\r\n"
        f"X-Forwarded-Proto: {'https' if n % 2 else 'http'}\r\n\r\n"
        for n in range(20)
    ]
    heads.append("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    with (
        echoing(SMA_TRUSTED_PROXIES="127.0.0.1") as echo,
        socket.create_connection(("127.0.0.1", echo.port), timeout=10) as connection,
    ):
        connection.sendall("".join(heads).encode())
        answers = b"".join(iter(lambda: connection.recv(65_536), b""))
    told = [json.loads(b"{" + each.partition(b"}")[0] + b"}") for each in answers.split(b"{")[1:]]
    assert [each["client"][0] for each in told] == [
        *(f"203.0.113.{n}" for n in range(20)),
        "127.0.0.1",
    ]
    assert [each["scheme"] for each in told] == [*(["http", "https"] * 10), "http"]


def test_a_wish_for_another_protocol_keeps_the_client() -> None:
    """Threat 23: a head that is read twice (RFC 9110, section 7.8) is believed as much."""
    with echoing(SMA_TRUSTED_PROXIES="127.0.0.1") as echo:
        told = httpx2.get(
            f"http://127.0.0.1:{echo.port}/",
            headers={"X-Forwarded-For": CLIENT, "Connection": "Upgrade", "Upgrade": "h2c"},
            trust_env=False,
        ).json()
    assert told["client"] == [CLIENT, 0]
    assert told["tls"] is None
