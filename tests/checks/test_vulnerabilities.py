"""The check for known vulnerabilities, with the real pip-audit and databases of this test's own."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from checks import vulnerabilities

LOCK = f"alpha==1.0 --hash=sha256:{'a' * 64}\nbeta==2.0 --hash=sha256:{'b' * 64}\n"


class _Database(BaseHTTPRequestHandler):
    """Answers in the format of OSV: `alpha` has a vulnerability where the path says so."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = {
            "id": "TEST-2026-1",
            "details": "It opens the door.",
            "affected": [
                {
                    "package": {"name": "alpha", "ecosystem": "PyPI"},
                    "ranges": [
                        {
                            "type": "ECOSYSTEM",
                            "events": [{"introduced": "0"}, {"fixed": "1.1"}],
                        }
                    ],
                }
            ],
        }
        bad = self.path == "/bad" and asked["package"]["name"] == "alpha"
        body = json.dumps({"vulns": [known]} if bad else {}).encode()
        self.send_response(503 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database that answers, and a lock with two packages."""
    lock = tmp_path / "dev.lock"
    lock.write_text(LOCK)
    monkeypatch.setattr(vulnerabilities, "LOCK", str(lock))
    monkeypatch.setattr(vulnerabilities, "SERVICES", ("osv",))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Database) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check(url: str, folder: Path) -> int:
    """Run the check against a database, with no cache from before."""
    return vulnerabilities.main(["--osv-url", url, "--cache-dir", str(folder / "cache")])


def test_a_vulnerability_fails_the_check(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(f"{database}/bad", tmp_path) == 1
    assert capsys.readouterr().out.splitlines() == [
        "alpha 1.0: TEST-2026-1, fixed in 1.1",
        "vulnerabilities: 1 known in 2 packages",
    ]


def test_no_vulnerability_passes(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(f"{database}/good", tmp_path) == 0
    assert capsys.readouterr().out == "vulnerabilities: 0 known in 2 packages\n"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "broken"])
def test_not_to_be_able_to_ask_is_said_and_passes(
    database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert check(f"{database}/broken" if url == "broken" else url, tmp_path) == 0
    assert capsys.readouterr().out == (
        "vulnerabilities: not checked, because no database of osv responds\n"
    )
