"""Every code block of docs/ is run, or marked with the reason why not."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import CHECKED, RUN, Block, pages, read_blocks
from tests.docs.session import Session
from tests.support.programs.commands import sma
from tests.support.programs.running import Running, Servers

BLOCKS = {page: list(read_blocks(page)) for page in pages()}
WITH_CODE = [page for page, blocks in BLOCKS.items() if any(block.runs for block in blocks)]
MARKS = {"", "file", "response", "exit codes", "not run"}
DEVICES = ("camera-1001", "camera-1002")
"""Devices that pages name, as if the reader had provisioned them."""


@pytest.fixture(scope="session")
def shared_servers(
    tmp_path_factory: pytest.TempPathFactory, postgres_admin_url: str
) -> Iterator[Servers]:
    """Yield the servers of the pages that start none. They begin when a page needs one."""
    shared = Servers(tmp_path_factory.mktemp("docs"), postgres_admin_url, SMA_TABLES="250")
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def reader(shared_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a reader who has a server, two devices and access keys."""
    running = shared_servers.get("postgresql")
    keys = {
        variable: _create_key(running, variable.lower(), scope)
        for variable, scope in {"AUTHORITY_KEY": "validate", "ENROLMENT_KEY": "provision"}.items()
    }
    for serial in DEVICES:
        target = tmp_path_factory.mktemp("device") / serial
        done = sma("provision", serial, "--output-dir", str(target), environ=running.environ)
        assert done.returncode == 0, done.stderr
    return running.environ | keys


def _create_key(running: Running, name: str, scope: str) -> str:
    done = sma("keys", "create", name, "--scope", scope, environ=running.environ)
    assert done.returncode == 0, done.stderr
    [key] = [word for word in done.stdout.split() if word.startswith("sma_")]
    return str(key)


@pytest.mark.parametrize("page", WITH_CODE)
def test_a_page_does_what_it_says(
    page: str,
    reader: dict[str, str],
    shared_servers: Servers,
    postgres_binaries: Path,
    tmp_path: Path,
) -> None:
    """Its blocks run one after the other, in one folder, as a reader would type them."""
    environ = reader | {"PATH": f"{postgres_binaries}:{reader['PATH']}"}
    with Session(tmp_path, shared_servers.get("postgresql").server.url, environ) as session:
        for block in filter(lambda each: each.runs, BLOCKS[page]):
            session.do(block)
        session.end()


@pytest.mark.parametrize("page", BLOCKS)
def test_every_block_says_what_it_is(page: str) -> None:
    """A language, a known mark, and a reason where it is not run."""
    for block in BLOCKS[page]:
        assert block.language, f"{block} has no language"
        assert block.mark in MARKS, f"{block}: {block.mark}"
        if block.mark == "not run":
            assert len(block.argument) > 15, f"{block}: say why it is not run"
        else:
            assert block.language in RUN | CHECKED, f"{block}: nothing runs {block.language}"


def test_the_count_of_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    """Most are run. The count is printed, so that a change shows."""
    blocks = [block for page in BLOCKS.values() for block in page]
    kinds = Counter(_kind(block) for block in blocks)
    with capsys.disabled():
        sys.stdout.write(f"\ncode blocks of docs/: {dict(kinds)}\n")
    assert kinds["run or compared"] > 130
    assert kinds["not run"] < kinds["run or compared"] / 3


def _kind(block: Block) -> str:
    return "run or compared" if block.runs else "not run"


def test_a_block_that_fails_is_found(tmp_path: Path) -> None:
    """A wrong command, a wrong output and a wrong response each fail their page."""
    environ = {"PATH": "/usr/bin:/bin"}
    for language, mark, text in (
        ("sh", "", "false"),
        ("text", "", "another"),
        ("python", "", "raise ValueError"),
    ):
        folder = tmp_path / language
        folder.mkdir()
        with Session(folder, "http://127.0.0.1:1", environ) as session:
            session.do(Block("page.md", 1, "sh", "echo one", "", ""))
            session.do(Block("page.md", 2, "text", "o*e", "", ""))
            with pytest.raises(AssertionError, match=r"page\.md:3"):
                session.do(Block("page.md", 3, language, text, mark, ""))


def test_a_response_with_other_fields_is_found(tmp_path: Path) -> None:
    with Session(tmp_path, "http://127.0.0.1:1", {"PATH": "/usr/bin:/bin"}) as session:
        session.do(Block("page.md", 1, "sh", "echo '{\"a\": 1}'", "", ""))
        session.do(Block("page.md", 2, "json", '{"b": 1}', "response", ""))
        session.do(Block("page.md", 3, "json", '{"a": 2}', "response", ""))
        session.end()
        session.do(Block("page.md", 4, "json", '{"b": 1}', "response", ""))
        with pytest.raises(AssertionError, match=r"page\.md:4"):
            session.end()


@pytest.mark.parametrize("name", ["type", "title", "status", "validation_result"])
def test_a_response_with_another_verdict_or_problem_is_found(tmp_path: Path, name: str) -> None:
    with Session(tmp_path, "http://127.0.0.1:1", {"PATH": "/usr/bin:/bin"}) as session:
        for documented, line in (("PASS", 2), ("FAIL", 4)):
            session.do(Block("page.md", line - 1, "sh", f'echo \'{{"{name}": "PASS"}}\'', "", ""))
            text = f'{{"{name}": "{documented}"}}'
            session.do(Block("page.md", line, "json", text, "response", ""))
            if documented == "PASS":
                session.end()
        with pytest.raises(AssertionError, match=r"page\.md:4"):
            session.end()


def test_a_response_may_end_with_its_status(tmp_path: Path) -> None:
    """The id's prefix counts, and the status is compared by a block of its own."""
    with Session(tmp_path, "http://127.0.0.1:1", {"PATH": "/usr/bin:/bin"}) as session:
        session.do(Block("page.md", 1, "sh", 'printf \'{"id": "PROV-1"}\\n200\\n\'', "", ""))
        session.do(Block("page.md", 2, "json", '{"id": "PROV-2"}', "response", ""))
        session.do(Block("page.md", 3, "text", "200", "", ""))
        session.do(Block("page.md", 4, "json", '{"id": "DEV-1"}', "response", ""))
        with pytest.raises(AssertionError, match=r"page\.md:4"):
            session.do(Block("page.md", 5, "text", "200", "", ""))
