"""The blocks for nginx and Caddy on docs/set-up/proxy.md, word by word but for ports and paths."""

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import trustme

from tests.docs.blocks import ROOT, read_blocks
from tests.support.access_keys import bearer, start_with_keys
from tests.support.cameras.camera import VALIDATE, Camera, wire
from tests.support.deployment.tools import tool
from tests.support.http.ports import free_port
from tests.support.programs.running import Running, new_serial, wait_until

NAME = "sma.example.org"
PROXY, CLIENT = "127.0.0.1", "127.0.0.9"
CONTACT = ROOT / "deploy" / "caddy" / "security.txt"
SECONDS = 60


@dataclass(frozen=True)
class Proxy:
    """A running proxy: its port for HTTPS, its port for HTTP, and the CA of its certificate."""

    port: int
    plain: int
    authority: Path

    def client(self, headers: dict[str, str] | None = None) -> httpx2.Client:
        """Return a client at another address, which knows the proxy by its name."""
        return httpx2.Client(
            base_url=f"https://{PROXY}:{self.port}",
            headers={"Host": NAME} | (headers or {}),
            transport=_Named(self.authority),
            timeout=SECONDS,
        )


class _Named(httpx2.HTTPTransport):
    """Asks for the proxy's name in TLS, and verifies it. No name server knows it."""

    def __init__(self, authority: Path) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        super().__init__(verify=context, local_address=CLIENT)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions["sni_hostname"] = NAME
        return super().handle_request(request)


def block(marker: str) -> str:
    """Return the one block of the page that has a text in it."""
    [found] = [each.text for each in read_blocks("set-up/proxy.md") if marker in each.text]
    return found


def with_changes(text: str, changes: dict[str, str]) -> str:
    """Return a text with other ports and paths. Each is there, or the test adapts nothing."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[None]:
    """Run a proxy until the end of the block. Its output goes into a file."""
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(SECONDS)


@contextmanager
def nginx(folder: Path, upstream: int) -> Iterator[Proxy]:
    """Run nginx with the page's block as the one file of conf.d."""
    port, plain = free_port(), free_port()
    made = trustme.CA()
    authority, issued = folder / "ca.pem", made.issue_cert(NAME)
    made.cert_pem.write_to_path(authority)
    issued.private_key_pem.write_to_path(folder / "privkey.pem")
    for part in issued.cert_chain_pems:
        part.write_to_path(folder / "fullchain.pem", append=True)
    (folder / "sma.conf").write_text(
        with_changes(
            block("listen 443 ssl;"),
            {
                "server 127.0.0.1:8000;": f"server 127.0.0.1:{upstream};",
                "listen 80;": f"listen {plain};",
                "listen [::]:80;": f"listen [::]:{plain};",
                "listen 443 ssl;": f"listen {port} ssl;",
                "listen [::]:443 ssl;": f"listen [::]:{port} ssl;",
                f"/etc/letsencrypt/live/{NAME}/": f"{folder}/",
                "/etc/nginx/": f"{CONTACT.parent}/",
            },
        ),
        encoding="utf-8",
    )
    temporary = "\n".join(
        f"{kind}_temp_path {folder / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/nginx.pid; events {{}}\n"
        f"http {{ access_log off; {temporary}\ninclude {folder}/sma.conf; }}\n",
        encoding="utf-8",
    )
    options = ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with running([tool("nginx"), *options], folder):
        yield Proxy(port, plain, authority)


@contextmanager
def caddy(folder: Path, upstream: int) -> Iterator[Proxy]:
    """Run Caddy with the page's block, and a certificate of its own CA."""
    port, plain = free_port(), free_port()
    text = block("reverse_proxy 127.0.0.1:8000")
    changes = {"127.0.0.1:8000": f"127.0.0.1:{upstream}", "/etc/caddy": str(CONTACT.parent)}
    text = with_changes(text, changes)
    ports = f"http_port {plain}\n\thttps_port {port}"
    file = folder / "Caddyfile"
    options = f"{{\n\tadmin off\n\tskip_install_trust\n\tlocal_certs\n\t{ports}\n}}\n"
    file.write_text(options + text, encoding="utf-8")
    program = str(Path(sys.executable).parent / "caddy")
    authority = folder / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    with running([program, "run", "--config", str(file), "--adapter", "caddyfile"], folder):
        wait_until(authority.exists, SECONDS)
        yield Proxy(port, plain, authority)


@pytest.fixture(scope="module", params=[nginx, caddy], ids=["nginx", "caddy"])
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Proxy, Running, dict[str, str]]]:
    """A server that names its proxy, the proxy, and an access key of each scope."""
    folder = tmp_path_factory.mktemp("proxied")
    server, keys = start_with_keys(folder / "data", "sqlite:", "--trusted-proxies", PROXY)
    place = tmp_path_factory.mktemp("proxy")
    with server.server, request.param(place, int(server.server.url.rpartition(":")[2])) as proxy:
        wait_until(lambda: _answers(proxy), SECONDS)
        yield proxy, server, keys


def _answers(proxy: Proxy) -> bool:
    try:
        with proxy.client() as client:
            return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


def test_a_token_passes_and_its_sender_is_recorded(
    behind: tuple[Proxy, Running, dict[str, str]],
) -> None:
    """Threat 23: whatever the client claims, the audit row has the address that the proxy saw."""
    proxy, server, keys = behind
    with proxy.client(bearer(keys["provision"])) as client:
        camera = Camera.provisioned(client, new_serial())
    forged = {"Forwarded": "for=203.0.113.9", "X-Forwarded-For": "203.0.113.9"}
    for headers in ({}, forged):
        token = camera.token()
        with proxy.client(bearer(keys["validate"]) | headers) as client:
            answer = client.post(VALIDATE, json=wire(token), headers={"X-Request-ID": "mine-1"})
        assert answer.json()["validation_result"] == "PASS"
        assert answer.headers["X-Request-ID"] == "mine-1"
        [row] = server.audit_rows(token)
        assert row.request_ip == CLIENT


def test_a_wrong_credential_is_refused(behind: tuple[Proxy, Running, dict[str, str]]) -> None:
    """`Authorization` arrives, and loopback is no reason to be open."""
    proxy, _, keys = behind
    for headers, status in (({}, 401), (bearer("wrong"), 401), (bearer(keys["provision"]), 403)):
        with proxy.client(headers) as client:
            assert client.post(VALIDATE, json={}).status_code == status


def test_a_batch_of_1000_tokens_passes_and_a_larger_body_does_not(
    behind: tuple[Proxy, Running, dict[str, str]],
) -> None:
    proxy, _, keys = behind
    with proxy.client(bearer(keys["provision"])) as client:
        token = wire(Camera.provisioned(client, new_serial()).token())
    with proxy.client(bearer(keys["validate"])) as client:
        answer = client.post(f"{VALIDATE}/batch", json={"tokens": [token] * 1_000})
        assert [each["validation_result"] for each in answer.json()["results"]] == ["PASS"] * 1_000
        json = {"Content-Type": "application/json"}
        large = client.post(f"{VALIDATE}/batch", content=b" " * 1_100_000, headers=json)
        assert large.status_code == 413


def test_paths_arrive_as_they_were_sent(behind: tuple[Proxy, Running, dict[str, str]]) -> None:
    """Threat 32: a proxy that decodes a path would send it to another route."""
    proxy, _, keys = behind
    with proxy.client(bearer(keys["provision"])) as client:
        assert client.post("/api/v1/devices/provision", json={}).status_code == 422
        for path in ("/api/v1/devices%2Fprovision", "/api/v1/devices/provision%0A"):
            assert client.post(path, json={}).status_code == 404, path


def test_plain_http_is_sent_to_https(behind: tuple[Proxy, Running, dict[str, str]]) -> None:
    proxy, _, _ = behind
    url = f"http://{PROXY}:{proxy.plain}/health?a=b"
    answer = httpx2.get(url, headers={"Host": NAME}, trust_env=False)
    assert answer.status_code in {301, 308}
    assert answer.headers["Location"].replace(f":{proxy.port}", "") == f"https://{NAME}/health?a=b"


def test_the_security_contact_is_public(behind: tuple[Proxy, Running, dict[str, str]]) -> None:
    """RFC 9116, section 3: the file as plain text, which needs no access key."""
    proxy, _, _ = behind
    with proxy.client() as client:
        answer = client.get("/.well-known/security.txt")
    assert answer.text == CONTACT.read_text(encoding="utf-8")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_no_answer_of_the_proxy_looks_like_a_verdict(tmp_path: Path) -> None:
    """Threat 19: while the server is away, nginx says 502 at once. The client repeats."""
    with nginx(tmp_path, free_port()) as proxy:

        def status() -> int:
            try:
                with proxy.client() as client:
                    return client.post(VALIDATE, json={}).status_code
            except httpx2.TransportError:
                return 0

        wait_until(lambda: status() != 0, SECONDS)
        assert status() == 502
