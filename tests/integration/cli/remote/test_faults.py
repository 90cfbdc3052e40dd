"""A command on a server that fails, lies, is another program, or does not trust the key."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from birthmark_sma.authority.devices.states import suspend
from birthmark_sma.cli.administration import transport
from birthmark_sma.cli.administration.remote import RemoteAdministration
from birthmark_sma.cli.administration.transport import ServerConnection
from birthmark_sma.config import Settings
from birthmark_sma.errors import (
    AuthorityAwayError,
    BirthmarkError,
    ConfigurationError,
    RefusedByServerError,
)
from tests.integration.cli.conftest import assert_refused
from tests.integration.cli.remote.conftest import KEY, SERVER, Remote
from tests.support.devices.actors import ACTOR
from tests.support.programs.commands import sma
from tests.support.programs.server import Server

_UNUSED = "http://127.0.0.1:9"  # the port of the discard service: nothing listens there
_Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def send(handler: BaseHTTPRequestHandler, status: int, body: object, **headers: str) -> None:
    """Send a response; a body that is no bytes as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def problem(status: int, slug: str, **headers: str) -> _Answer:
    """Return what sends a problem document."""
    body = {"type": f"urn:birthmark:problem:{slug}", "detail": "So it is.", "status": status}
    return lambda handler, _: send(handler, status, body, **headers)


@contextmanager
def scripted(*answers: _Answer) -> "Iterator[tuple[str, list[dict[str, Any]]]]":
    """A server that gives these answers in turn, the last one again and again.

    Yield its URL, and the requests as it gets them.
    """
    requests: list[dict[str, Any]] = []

    class _Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            requests.append({"path": self.path, "body": body, "headers": dict(self.headers)})
            answers[min(len(requests), len(answers)) - 1](self, body)

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def drop(handler: BaseHTTPRequestHandler, _: bytes) -> None:
    """Close the connection without a response, as a server that is killed."""
    handler.close_connection = True
    handler.connection.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less than operators do."""
    monkeypatch.setattr(transport, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(transport, "_PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(transport, "_LONGEST_WAIT_SECONDS", 3.0)
    monkeypatch.setattr(transport, "_ANSWER_SECONDS", 1.5)


def opened(url: str) -> RemoteAdministration:
    """Return the authority of a server."""
    return RemoteAdministration(ServerConnection(Settings(server=url)))


REVOKED = {"name": "a", "id": "b", "state": "revoked", "a_member_of_a_later_version": 1}


def test_a_lost_answer_is_asked_for_again_with_the_same_key() -> None:
    """The server was killed between the request and the answer, and its successor knows it."""
    with scripted(drop, problem(503, "shutting-down"), lambda to, _: send(to, 200, REVOKED)) as (
        url,
        requests,
    ):
        assert opened(url).revoke_key("a/b c").state == "revoked"
        assert {each["path"] for each in requests} == {"/api/v1/keys/a%2Fb%20c/revoke"}
        assert len({each["headers"]["Idempotency-Key"] for each in requests}) == 1
        assert [each["body"] for each in requests] == [b"{}"] * 3
        opened(url).revoke_key("a")
        assert len({each["headers"]["Idempotency-Key"] for each in requests}) == 2


def test_a_server_that_never_answers_an_act_leaves_it_open() -> None:
    with scripted(drop) as (url, _), pytest.raises(AuthorityAwayError, match="not known whether"):
        opened(url).revoke_key("a")


@pytest.mark.parametrize(
    ("answers", "is_known"),
    [
        ((problem(503, "database-unavailable"),), False),
        ((problem(500, "internal-error"),), False),
        ((drop, problem(401, "unauthenticated")), False),  # it has revoked its own key, perhaps
        ((problem(401, "unauthenticated"),), True),
        ((drop, problem(404, "unknown-access-key")), True),  # the server knows the Idempotency-Key
    ],
)
def test_a_refusal_says_whether_the_act_may_be_done(
    answers: Sequence[_Answer], is_known: bool
) -> None:
    with scripted(*answers) as (url, _), pytest.raises(RefusedByServerError) as refused:
        opened(url).revoke_key("a")
    assert ("not known whether" not in str(refused.value)) is is_known
    with scripted(*answers) as (url, _), pytest.raises(RefusedByServerError) as refused:
        opened(url).list_keys(everything=True)
    assert "not known whether" not in str(refused.value)


def test_what_was_never_sent_is_not_done() -> None:
    with pytest.raises(AuthorityAwayError) as away:
        opened(_UNUSED).revoke_key("a")
    assert "not known whether" not in str(away.value)
    with scripted(drop) as (url, _), pytest.raises(AuthorityAwayError) as away:
        opened(url).change_devices(["a"], suspend(ACTOR), dry_run=True)
    assert "not known whether" not in str(away.value)


@pytest.mark.parametrize("slow", ["head", "body"])
def test_a_slow_server_is_given_up(slow: str) -> None:
    ended = threading.Event()

    def dawdle(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        if slow == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
        while not ended.wait(0.1):
            try:
                handler.wfile.write(b" " if slow == "body" else b"")
            except OSError:
                return

    with scripted(dawdle) as (url, requests):
        with pytest.raises(AuthorityAwayError):
            opened(url).list_keys(everything=True)
        ended.set()
    assert len(requests) == 1


def test_it_waits_as_it_is_told_and_no_longer() -> None:
    told = problem(429, "rate-limited", Retry_After="1")
    with scripted(told, lambda to, _: send(to, 200, REVOKED)) as (url, requests):
        assert opened(url).revoke_key("a").id == "b"
        assert len(requests) == 2
    with (
        scripted(problem(429, "rate-limited", Retry_After="3600")) as (url, requests),
        pytest.raises(RefusedByServerError, match="3600 seconds"),
    ):
        opened(url).revoke_key("a")
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (lambda to, _: send(to, 200, b"<html>"), ConfigurationError, "no JSON"),
        (lambda to, _: send(to, 200, b"[" * 100_000), ConfigurationError, "no JSON"),
        (lambda to, _: send(to, 200, {"keys": 5}), ConfigurationError, "keys"),
        (lambda to, _: send(to, 200, [1]), ConfigurationError, "version"),
        (
            lambda to, _: send(to, 200, {"keys": [], "next_cursor": "x"}),
            ConfigurationError,
            "repeat",
        ),
        (lambda to, _: send(to, 307, b"", Location=_UNUSED), ConfigurationError, "redirects"),
        (lambda to, _: send(to, 404, b"<html>"), ConfigurationError, "Check the URL"),
        (lambda to, _: send(to, 502, b"<html>"), AuthorityAwayError, "502"),
        (problem(404, "not-found"), ConfigurationError, "version"),
        (problem(503, "database-unavailable"), RefusedByServerError, "So it is"),
        (
            lambda to, _: send(to, 200, b"\x1f\x8b", Content_Encoding="gzip"),
            AuthorityAwayError,
            "broke",
        ),
        (lambda to, _: to.wfile.write(b"SSH-2.0-OpenSSH\r\n"), BirthmarkError, ""),
    ],
)
def test_what_is_no_answer_is_refused(
    answer: _Answer, kind: type[BirthmarkError], words: str
) -> None:
    with scripted(answer) as (url, _), pytest.raises(kind) as refused:
        opened(url).list_keys(everything=True)
    assert words in str(refused.value)


def test_a_huge_answer_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_MAX_ANSWER_BYTES", 1_000)
    body = b" " * 100_000
    with scripted(lambda to, _: send(to, 200, body)) as (url, _), pytest.raises(AuthorityAwayError):
        opened(url).list_keys(everything=True)


# --- the whole command


def told_no_secret(remote: Remote, *texts: str) -> bool:
    """Return whether no access key is in these texts."""
    return not any(key in text for key in remote.keys.values() for text in texts)


@pytest.mark.parametrize(
    ("role", "arguments", "words"),
    [
        ("monitor", ("devices", "list"), "read"),
        ("validate", ("devices", "list"), "read"),
        ("read", ("devices", "suspend", "base-1"), "operate"),
        ("operate", ("keys", "list"), "admin"),
    ],
)
def test_a_key_without_the_role_is_told_which_is_needed(
    remote: Remote, role: str, arguments: Sequence[str], words: str
) -> None:
    done = remote.on_server(*arguments, role=role)
    assert_refused(done, 6, words, f"scope {role}")
    assert told_no_secret(remote, done.stderr)


def test_a_wrong_key_and_none_are_refused(remote: Remote) -> None:
    wrong = remote.keys["admin"][:-4] + "aaaa"
    refused = remote.on_server("devices", "list", settings={KEY: wrong})
    assert_refused(refused, 6, "SMA_SERVER_KEY")
    assert wrong not in refused.stderr
    assert_refused(remote.on_server("devices", "list", settings={KEY: ""}), 6, "SMA_SERVER_KEY")
    injected = remote.on_server("devices", "list", settings={KEY: "a\r\nX-Evil: 1"})
    assert_refused(injected, 3, "visible ASCII")


def test_a_key_file_is_read_if_it_is_private(remote: Remote, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(remote.keys["read"] + "\n")
    file.chmod(0o644)
    environ = {SERVER: remote.url}
    given = ("--server-key-file", str(file), "devices", "list", "--limit", "1")
    assert_refused_beside_server(sma(*given, environ=environ, cwd=tmp_path), 3, "600")
    file.chmod(0o600)
    done = sma(*given, environ=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    both = sma(*given, environ=environ | {KEY: "x"}, cwd=tmp_path)
    assert_refused_beside_server(both, 3, "SMA_SERVER_KEY")
    missing = sma("--server-key-file", "none", "keys", "list", environ=environ, cwd=tmp_path)
    assert_refused_beside_server(missing, 3, "does not exist")


def assert_refused_beside_server(done: Any, code: int, words: str) -> None:
    """It was refused, after the line that names the server of the environment."""
    first, last = done.stderr.splitlines()
    assert first.startswith("Server: http")
    assert done.returncode == code, done.stderr
    assert words in last


def test_the_server_of_the_environment_is_named_on_stderr(remote: Remote, tmp_path: Path) -> None:
    environ = {SERVER: remote.url, KEY: remote.keys["read"]}
    done = sma("devices", "list", "--json", environ=environ, cwd=tmp_path)
    assert done.stderr == f"Server: {remote.url} (SMA_SERVER)\n"
    assert json.loads(done.stdout)["devices"]


def test_commands_that_need_the_database_refuse_a_server(remote: Remote, tmp_path: Path) -> None:
    for arguments in (("init",), ("serve",), ("history", "prune"), ("tables", "populate")):
        flagged = sma("--server", remote.url, *arguments, environ={}, cwd=tmp_path)
        assert flagged.returncode == 2
        assert "needs the database: run it where DATABASE_URL is set" in flagged.stderr
        named = sma(*arguments, environ={SERVER: remote.url}, cwd=tmp_path)
        assert_refused(named, 3, "SMA_SERVER is set")
    assert not (tmp_path / "sma-data").exists()
    both = {SERVER: remote.url, "DATABASE_URL": "postgresql://db/sma"}
    assert_refused(sma("devices", "list", environ=both, cwd=tmp_path), 3, "not clear")
    check = remote.on_server("devices", "flagged", "--check")
    assert check.returncode == 2
    assert "--check needs the database" in check.stderr


def test_a_wrong_url_is_refused(remote: Remote, tmp_path: Path) -> None:
    def run(url: str) -> Any:
        return sma("--server", url, "devices", "list", environ={KEY: "x"}, cwd=tmp_path)

    assert_refused(run("http://sma.example.org"), 3, "https://")
    assert_refused(run("sma.example.org"), 3, "https://")
    assert_refused(run("https://user:secret@sma.example.org"), 3, "host, a port and a path")
    assert_refused(run(_UNUSED), 4, "No server answers at this address")
    known = {KEY: remote.keys["read"]}
    elsewhere = ("--server", f"{remote.url}/elsewhere", "devices", "list")
    assert_refused(sma(*elsewhere, environ=known, cwd=tmp_path), 3, "/elsewhere")
    assert_refused(run(remote.url.replace("http:", "https:")), 3, "TLS")


def test_tls_needs_a_trusted_certificate(tmp_path: Path) -> None:
    with Server(tmp_path / "data", "--tls-self", environ={"SMA_ACCESS": "open"}) as server:
        arguments = ("--server", server.url, "devices", "list")
        assert_refused(sma(*arguments, environ={}, cwd=tmp_path), 3, "--server-ca-file")
        [ca] = (tmp_path / "data").rglob("*ca*.crt")
        done = sma("--server-ca-file", str(ca), *arguments, environ={}, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        unusable = ("--server-ca-file", str(tmp_path / "none"), *arguments)
        assert_refused(sma(*unusable, environ={}, cwd=tmp_path), 3, "TLS")


def test_a_key_whose_answer_was_lost_is_created_once(remote: Remote) -> None:
    """The first response is lost on the way: the second request gets the same secret again."""
    secrets: list[str] = []

    def forward(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        kept = ("Authorization", "Content-Type", "Idempotency-Key")
        sent = {name: handler.headers[name] for name in kept}
        answer = httpx2.post(remote.url + handler.path, content=body, headers=sent)
        secrets.extend(re.findall(r'"key": *"([^"]+)"', answer.text))
        if len(secrets) == 1:
            drop(handler, body)
        else:
            send(handler, answer.status_code, answer.content)

    with scripted(forward) as (url, requests):
        environ = {KEY: remote.keys["admin"]}
        given = ("--server", url, "keys", "create", "lost", "--scope", "validate", "--json")
        done = sma(*given, environ=environ, cwd=remote.folder)
    assert done.returncode == 0, done.stderr
    assert len(requests) == 2
    assert secrets == [json.loads(done.stdout)["key"]] * 2
    listed = json.loads(remote.on_database("keys", "list", "--json").stdout)["keys"]
    assert [each["name"] for each in listed].count("lost") == 1
    acts = json.loads(remote.on_database("acts", "list", "--json").stdout)["acts"]
    assert [(each["after"] or {}).get("name") for each in acts].count("lost") == 1


def test_a_long_list_of_serials_is_one_request(remote: Remote) -> None:
    serials = "\n".join(f"unknown-{number:04}" for number in range(3_000))
    done = remote.on_server("devices", "suspend", "--file", "-", "--yes", stdin=serials)
    assert_refused(done, 5, "No device unknown-0000", "2,995 more are registered")
