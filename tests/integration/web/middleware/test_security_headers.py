"""What browsers are told of every answer, and which pages may call the API."""

import asyncio
import base64
import hashlib
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.types import Message

from birthmark_sma.web.middleware.security_headers import ResponseHeaders
from tests.support.cameras.camera import PROVISION, VALIDATE, Camera, wire
from tests.support.http.contexts import make_context
from tests.support.programs.running import Running, new_serial, start

BATCH = f"{VALIDATE}/batch"
PAGES = ("/docs", "/redoc", "/docs/oauth2-redirect")
ASSETS = (
    "color_scheme.js",
    "redoc_colors.js",
    "vendor/swagger-ui/swagger-ui-bundle.js",
    "vendor/swagger-ui/swagger-ui.css",
    "vendor/redoc/redoc.standalone.js",
)
OTHERS = (
    "/",
    "/openapi.json",
    "/health",
    "/health/live",
    "/health/ready",
    "/stats",
    "/pki/root.crt",
    "/pki/intermediate.crt",
    "/pki/intermediate.crl",
    "/pki/root.crl",
    "/pki/ca/root.crt",
    "/pki/roots.pem",
    "/pki/roots.pem.p7s",
    "/nothing",
    PROVISION,
    VALIDATE,
    BATCH,
    "/validate",
    "/validate-legacy",
    *(f"/static-offline-docs/{name}" for name in ASSETS),
)
ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
ORIGIN = "https://app.example.org"


class _Parts(HTMLParser):
    """The scripts and styles of a page, and whatever it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.loaded: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        source = named.get("src") or (named.get("href") if tag == "link" else None)
        if source:
            self.loaded.append(source)
        self._inside = tag == "script" and not source
        assert not [name for name in named if name.startswith("on")], (
            "a handler needs unsafe-inline"
        )

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.inline.append(data)


def policy_of(response: httpx2.Response) -> dict[str, list[str]]:
    """The one Content-Security-Policy of an answer, by directive."""
    (value,) = response.headers.get_list("content-security-policy")
    parts = [each.split() for each in value.split(";")]
    return {part[0]: part[1:] for part in parts}


def assert_framed_by_nobody(response: httpx2.Response) -> None:
    """What every answer has, each once."""
    for name, value in ALWAYS.items():
        assert response.headers.get_list(name) == [value]
    assert "camera=()" in response.headers["permissions-policy"]
    policy = policy_of(response)
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == ["'none'"]
    assert "'unsafe-eval'" not in response.headers["content-security-policy"]
    assert "strict-transport-security" not in response.headers, "there is no TLS here"
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", OTHERS)
def test_what_is_no_page_runs_nothing(running_on_sqlite: Running, path: str) -> None:
    """Threat 22: whatever a browser is led to open here loads, runs and frames nothing."""
    with running_on_sqlite.client() as client:
        response = client.get(path)
        assert_framed_by_nobody(response)
        assert set(policy_of(response)) == {
            *("default-src", "frame-ancestors", "base-uri", "form-action")
        }
        public = path.startswith(("/pki/", "/static-offline-docs/"))
        # A cache asks each time whether a list is still the newest.
        kept = "no-cache" if path.endswith((".crl", ".pem", ".p7s")) else None
        assert response.headers.get("cache-control") == (kept if public else "no-store")
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", PAGES)
def test_pages_run_their_own_scripts_alone(running_on_sqlite: Running, path: str) -> None:
    """Threat 22: each script that stands in a page is named by its hash, and the page loads
    everything from here."""
    with running_on_sqlite.client() as client:
        response = client.get(path)
        assert_framed_by_nobody(response)
        assert response.headers["cache-control"] == "no-store"
        page = _Parts()
        page.feed(response.text)
        digests = [hashlib.sha256(each.encode()).digest() for each in page.inline]
        hashes = [f"'sha256-{base64.b64encode(each).decode()}'" for each in digests]
        assert policy_of(response)["script-src"] == ["'self'", *hashes]
        for source in page.loaded:
            assert source.startswith(("/static-offline-docs/", "/dashboard/static/"))
            assert client.get(source).status_code == 200
        head = client.head(path)
        assert (
            head.headers["content-security-policy"] == response.headers["content-security-policy"]
        )


def test_answers_that_matter_are_kept_by_nobody(running_on_sqlite: Running) -> None:
    """On the direct way, the ordinary way, and where a request is refused before either."""
    with running_on_sqlite.client() as client:
        camera = Camera.provisioned(client, new_serial())
        answers = [
            client.post(VALIDATE, json=wire(camera.token())),
            client.post(BATCH, json={"tokens": [wire(camera.token())]}),
            client.post(VALIDATE, json={**wire(camera.token()), "table_id": 99_999}),
            client.post(VALIDATE, content=b"<script>", headers={"content-type": "text/html"}),
            client.post(PROVISION, json={"device_serial": "<script>"}),
            client.get("/health", headers={"x": "x" * 70_000}),
        ]
    assert [each.status_code for each in answers] == [200, 200, 400, 415, 422, 431]
    for each in answers:
        assert_framed_by_nobody(each)
        assert each.headers["cache-control"] == "no-store"
        assert "html" not in each.headers["content-type"]


def test_what_is_not_http_is_answered_as_safely(running_on_sqlite: Running) -> None:
    place = urlsplit(running_on_sqlite.server.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(b"<script>\r\n\r\n")
        answer = connection.recv(65_536).lower()
    assert answer.startswith(b"http/1.1 400")
    assert b"x-content-type-options: nosniff\r\n" in answer
    assert b"content-security-policy: default-src 'none';" in answer


@pytest.mark.parametrize(
    ("scheme", "host", "sent"),
    [
        ("https", b"sma.example.org", True),
        ("https", b"sma.example.org:8443", True),
        ("https", b"localhost:8443", False),
        ("https", b"127.0.0.1:8443", False),
        ("http", b"sma.example.org", False),
    ],
)
def test_who_comes_by_tls_stays_with_it(scheme: str, host: bytes, sent: bool) -> None:
    """RFC 6797; but localhost belongs to every program of a developer's."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    sender = ResponseHeaders(make_context(scheme=scheme, headers=[(b"host", host)]), send)

    async def begin() -> None:
        await sender.send({"type": "http.response.start", "status": 200, "headers": []})

    asyncio.run(begin())
    names = [name for name, _ in messages[0]["headers"]]
    assert (b"strict-transport-security" in names) is sent


# --- other origins


@pytest.fixture(scope="module")
def for_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that pages of one origin may call, with limits."""
    running = start(
        tmp_path_factory.mktemp("pages") / "data",
        "sqlite:",
        *("--cors-origins", f"{ORIGIN}, http://localhost:3000", "--rate-validate", "4/hour"),
        SMA_TABLES="50",
    )
    yield running
    running.server.close()


def preflight(running: Running, origin: str, path: str, method: str) -> httpx2.Response:
    """Ask what a browser asks before it lets a page call."""
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization,content-type,idempotency-key",
    }
    with running.client() as client:
        return client.options(path, headers=headers)


@pytest.mark.parametrize("path", [VALIDATE, BATCH, PROVISION, "/stats"])
def test_a_named_origin_may_ask(for_pages: Running, path: str) -> None:
    """A preflight carries no credentials, and needs none; cookies are never asked for."""
    response = preflight(for_pages, ORIGIN, path, "POST")
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in response.headers
    allowed = response.headers["access-control-allow-headers"].lower()
    assert {"authorization", "content-type", "idempotency-key"} <= set(allowed.split(", "))
    assert "origin" in response.headers["vary"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.org",
        "http://app.example.org",
        "https://app.example.org:8443",
        "https://app.example.org.evil.test",
        "https://sub.app.example.org",
        "null",
        "*",
    ],
)
def test_any_other_origin_is_refused(for_pages: Running, origin: str) -> None:
    """Threat 22: also those that look like it."""
    response = preflight(for_pages, origin, VALIDATE, "POST")
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers
    with for_pages.client("127.0.9.1") as client:
        answer = client.get("/health", headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_only_methods_that_there_are(for_pages: Running, method: str) -> None:
    assert preflight(for_pages, ORIGIN, VALIDATE, method).status_code == 400


def test_a_page_can_read_verdicts_refusals_and_what_is_left(for_pages: Running) -> None:
    """Single tokens are answered without middleware, but not to pages."""
    with for_pages.client() as client:
        camera = Camera.provisioned(client, new_serial())
    with for_pages.client("127.0.9.2", headers={"origin": ORIGIN}) as page:
        answers = [page.post(VALIDATE, json=wire(camera.token())) for _ in range(5)]
        answers.append(page.post(VALIDATE, json={}))
    assert [each.status_code for each in answers] == [200] * 4 + [429, 429]
    for each in answers:
        assert each.headers["access-control-allow-origin"] == ORIGIN
        exposed = each.headers["access-control-expose-headers"].lower()
        assert {"ratelimit", "ratelimit-policy", "retry-after"} <= set(exposed.split(", "))
        assert "ratelimit" in each.headers
        assert "access-control-allow-credentials" not in each.headers
    assert answers[0].json()["validation_result"] == "PASS"


def test_without_named_origins_none_is_let_in(running_on_sqlite: Running) -> None:
    """Threat 22: off unless somebody says otherwise."""
    response = preflight(running_on_sqlite, ORIGIN, VALIDATE, "POST")
    assert response.status_code == 405
    with running_on_sqlite.client() as client:
        answer = client.get("/health", headers={"origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]
