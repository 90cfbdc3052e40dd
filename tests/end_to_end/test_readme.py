"""The README's commands work as they stand there, against a real server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import Server

README = Path(__file__).parents[2] / "README.md"
DEFAULT_URL = "http://127.0.0.1:8000"


def block(language: str, containing: str) -> str:
    """The README's one code block of a language that contains a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    [found] = [each for each in blocks if containing in each]
    return str(found)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    """A server such as `make run` starts, on a free port."""
    return Server(tmp_path / "data")


def test_the_first_provisioning_and_validation_work_as_printed(
    server: Server, tmp_path: Path
) -> None:
    """curl provisions a camera; the Python example seals a token and gets PASS."""
    assert shutil.which("curl"), "install curl"
    with server:
        shell = block("sh", "devices/provision").replace(DEFAULT_URL, server.url)
        subprocess.run(["sh", "-e", "-c", shell], cwd=tmp_path, check=True, timeout=60)
        python = block("python", "derive_key").replace(DEFAULT_URL, server.url)
        done = subprocess.run(
            [sys.executable, "-c", python],
            cwd=tmp_path,
            check=True,
            timeout=60,
            capture_output=True,
            text=True,
        )
    assert done.stdout == "PASS\n"


def test_every_local_link_of_the_documents_leads_somewhere() -> None:
    """A document that names a file names one that exists."""
    top = README.parent
    documents = [*top.glob("*.md"), *top.glob("docs/**/*.md"), *top.glob("vectors/*.md")]
    broken = [
        f"{document.relative_to(top)}: {target}"
        for document in documents
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8"))
        if not (document.parent / target).exists()
    ]
    assert not broken
    assert len(documents) > 10
