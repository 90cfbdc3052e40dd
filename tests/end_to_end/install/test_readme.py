"""The README's commands work as they stand there, against a real server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deployment.readme import DEFAULT_URL, EXAMPLE_DATABASE, README, block
from tests.support.programs.server import Server, read_facts, server_environ


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


def test_postgresql_works_in_the_clone_in_which_make_run_was_typed(
    server: Server, postgres_url: str, tmp_path: Path
) -> None:
    """SQLite's authority and PostgreSQL's live beside each other, each with a data directory."""
    with server:
        assert server.terminate() == 0
    shell = block("sh", "DATABASE_URL").replace(EXAMPLE_DATABASE, f"'{postgres_url}'")
    shell = shell.replace(". .venv/bin/activate", f"PATH={Path(sys.executable).parent}:$PATH")
    # Whatever the shell ends with is the server, in its place.
    shell = shell.replace("sma serve", "exec sma serve --port 0 --json")
    environ = server_environ(tmp_path / "data") | {"SMA_TABLES": "5", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        ["sh", "-e", "-c", shell], env=environ, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            facts = read_facts(running)
        finally:
            running.terminate()
    assert running.returncode == 0
    assert facts["database"] == "postgresql"


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


def test_nothing_tells_a_reader_to_install_what_no_index_has() -> None:
    """Until a release is published, the package comes from a clone or from a wheel file."""
    top = README.parent
    pages = [page for page in top.glob("*.md") if page.name != "CHANGELOG.md"]  # tells the past
    places = [*pages, *(top / "docs" / "set-up").glob("*.md")]
    for folder in ("src", "examples", "deploy"):
        places += [file for file in (top / folder).rglob("*") if file.suffix in {".py", ".mjs"}]
    wrong = re.compile(r"pip install[^\n]*[ '\"]birthmark[-_]sma(?![\w.*-])")
    assert wrong.search("pip install 'birthmark-sma[server]'")
    assert wrong.search("type: pip install birthmark-sma")
    assert not wrong.search("pip install './birthmark_sma-0.1.0-py3-none-any.whl[server]'")
    found = [str(file) for file in places if wrong.search(file.read_text("utf-8"))]
    assert not found
    assert len(places) > 100
