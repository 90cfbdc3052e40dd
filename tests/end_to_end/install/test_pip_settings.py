"""`make setup` follows the user's configuration of pip, and works without uv."""

import base64
import hashlib
import os
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from checks.uv import parse_pip_settings, uses_no_index, uv_environment

ROOT = Path(__file__).parents[3]
UV = Path(sys.executable).parent / "uv"
LISTED = """global.cert='/etc/ca.pem'
global.extra-index-url='https://a.example.org/simple\\nhttps://b.example.org/simple'
global.index-url='https://old.example.org/simple'
install.index-url='https://install.example.org/simple'
list.format='json'
:env:.index-url='https://env.example.org/simple'
:env:.no-index='1'
"""


def test_the_nearest_setting_decides() -> None:
    """The environment beats the section of `pip install`, which beats the global one."""
    settings = parse_pip_settings(LISTED)
    assert settings["index-url"] == "https://env.example.org/simple"
    assert settings["cert"] == "/etc/ca.pem"
    assert "format" not in settings
    assert uses_no_index(settings)


def test_pips_words_in_uvs() -> None:
    environ = uv_environment(
        {
            "index-url": "https://one.example.org/simple",
            "extra-index-url": "https://two.example.org/simple\nhttps://three.example.org/simple",
            "find-links": "/a /b",
            "cert": "/ca.pem",
            "proxy": "http://proxy.example.org:3128",
            "trusted-host": "one.example.org",
            "timeout": "90",
        },
        {},
    )
    assert environ == {
        "UV_DEFAULT_INDEX": "https://one.example.org/simple",
        "UV_INDEX": "https://two.example.org/simple https://three.example.org/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/a,/b",
        "UV_INSECURE_HOST": "one.example.org",
        "UV_HTTP_TIMEOUT": "90",
        "UV_SYSTEM_CERTS": "1",
        "SSL_CERT_FILE": "/ca.pem",
        **dict.fromkeys(
            ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://proxy.example.org:3128"
        ),
    }


def test_what_the_user_told_uv_stays() -> None:
    given = {"UV_DEFAULT_INDEX": "https://mine.example.org/simple"}
    assert "UV_DEFAULT_INDEX" not in uv_environment({"index-url": "https://pip/simple"}, given)


def test_a_ca_that_pip_takes_from_the_environment() -> None:
    environ = uv_environment({}, {"REQUESTS_CA_BUNDLE": "/company.pem"})
    assert environ["SSL_CERT_FILE"] == "/company.pem"


def write_package(folder: Path) -> str:
    """Write a wheel and its page as an index has them. Return the line of a lock."""
    wheel = "onlyhere-1.0-py3-none-any.whl"
    (folder / "onlyhere").mkdir(parents=True)
    files = {
        "onlyhere.py": "",
        "onlyhere-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: onlyhere\nVersion: 1.0\n",
        "onlyhere-1.0.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "onlyhere-1.0.dist-info/RECORD"
    with zipfile.ZipFile(folder / "onlyhere" / wheel, "w") as archive:
        rows = [f"{record},,"]
        for name, text in files.items():
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            rows.append(f"{name},sha256={digest.decode().rstrip('=')},{len(text)}")
        archive.writestr(record, "\n".join(rows) + "\n")
    (folder / "onlyhere" / "index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    digest_of_wheel = hashlib.sha256((folder / "onlyhere" / wheel).read_bytes()).hexdigest()
    return f"onlyhere==1.0 --hash=sha256:{digest_of_wheel}\n"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """Yield a folder with a .venv, a lock, and pip's configuration of an index with its own CA."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "lock").write_text(write_package(tmp_path / "index" / "simple"))
    handler = partial(_Quiet, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        context = _server_context(authority)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (tmp_path / "pip.conf").write_text(
            f"[global]\nindex-url = https://127.0.0.1:{server.server_port}/simple\n"
            f"cert = {tmp_path / 'ca.pem'}\n"
        )
        subprocess.run(
            [UV, "venv", "-q", "--python", sys.executable, tmp_path / ".venv"], check=True
        )
        yield tmp_path
        server.shutdown()


def _server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("with_uv", [True, False], ids=["uv", "pip"])
def test_packages_come_from_the_index_that_pip_uses(clone: Path, *, with_uv: bool) -> None:
    """The index is known to pip.conf alone, and so is the CA of its certificate."""
    if with_uv:
        (clone / ".venv" / "bin" / "uv").symlink_to(UV)
    ignored = ("PIP_", "UV_", "SSL_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ignored)}
    environ |= {"PIP_CONFIG_FILE": str(clone / "pip.conf"), "UV_CACHE_DIR": str(clone / "cache")}
    arguments = ("pip", "install", "-q", "--compile-bytecode", "--require-hashes", "-r", "lock")
    done = subprocess.run(
        [sys.executable, ROOT / "checks" / "uv.py", *arguments],
        cwd=clone,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("uv could not install" in done.stderr) is not with_uv
    subprocess.run([clone / ".venv" / "bin" / "python", "-c", "import onlyhere"], check=True)
