"""The pages of docs/ are complete, find each other, and name files and tests that exist."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import DOCS, ROOT, pages

PAGES = {page: (DOCS / page).read_text(encoding="utf-8") for page in pages()}
GUIDES = [page for page in PAGES if not page.startswith("adr/") and page != "index.md"]
LONG_WITHOUT_CONTENTS = 60
WITHOUT_CONTENTS = {"commands.md", "dependencies.md", "glossary.md", "metrics.md", "settings.md"}
"""Pages that are one list, which a reader searches."""
_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,4} (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_TEST = re.compile(r"\btests/[\w/]+\.py::\w+")
_FILE = re.compile(r"`((?:\w+/)+[\w.]*|\w+\.py)`")


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    texts = _HEADING.findall(_FENCE.sub("", PAGES[page]))
    return {
        re.sub(r"[^\w\- ]", "", text.strip().lower().replace("`", "")).replace(" ", "-")
        for text in texts
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """Files exist, and so do the headings that links name."""
    broken = []
    for target in _LINK.findall(_FENCE.sub("", PAGES[page])):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = ((DOCS / page).parent / name).resolve() if name else (DOCS / page).resolve()
        known = file.relative_to(DOCS).as_posix() if file.is_relative_to(DOCS) else ""
        if not file.exists() or (anchor and anchor not in anchors(known)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", GUIDES)
def test_a_page_has_one_title_and_a_table_of_contents(page: str) -> None:
    """Whoever opens a page sees what it is for, and what is on it."""
    text = _FENCE.sub("", PAGES[page])
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    if text.count("\n") > LONG_WITHOUT_CONTENTS and page not in WITHOUT_CONTENTS:
        listed = re.findall(r"^[-*] \[([^\]]+)\]\(#", text, re.MULTILINE)
        assert [each for each in sections if each not in listed] == []


def test_every_alert_has_a_runbook() -> None:
    """In the order of the rules, with symptom and action."""
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    page = PAGES["operate/runbooks.md"]
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == alerts
    for section in page.split("\n## ")[1:]:
        assert "**Symptom.**" in section, section
        assert re.search(r"\*\*(?:Action\.|Cause and action\.)\*\*", section), section


def test_every_requirement_has_a_row_and_its_tests_exist() -> None:
    page = PAGES["manufacturer-specification.md"]
    demands, _, evidence = page.partition("## Where each requirement is met")
    numbers = re.findall(r"^\| ([A-Z]\d+) \| .*(?:MUST|SHOULD|MAY)", demands, re.MULTILINE)
    rows = dict(re.findall(r"^\| ([A-Z]\d+) \| (.+) \|$", evidence, re.MULTILINE))
    assert len(numbers) > 40
    assert list(rows) == numbers
    for number, row in rows.items():
        tests = _TEST.findall(row)
        assert tests, number
        assert [test for test in tests if not _exists(test)] == [], number
        here = row.partition(" | ")[0]
        files = [name for name in _FILE.findall(here) if not name.startswith("sma")]
        missing = [
            name
            for name in files
            if not (ROOT / "src/birthmark_sma" / name).exists() and not (ROOT / name).exists()
        ]
        assert missing == [], number


def _exists(test: str) -> bool:
    file, _, name = test.partition("::")
    if not (ROOT / file).exists():
        return False
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return name in {getattr(node, "name", None) for node in body}


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_a_page_names_exist(page: str) -> None:
    """Also those that show what a block that is not run does."""
    assert [test for test in set(_TEST.findall(PAGES[page])) if not _exists(test)] == []
    named = set(re.findall(r"\btests/[\w/]+(?:\.py)?", PAGES[page]))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_dependency_is_on_its_page() -> None:
    """And the page lists no library that nobody depends on, apart from programs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lists = [
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ]
    required = {_name(each) for some in lists for each in some if isinstance(each, str)}
    page = PAGES["dependencies.md"]
    cells = re.findall(r"^\| (?!library)([a-z][^|]*) \|", page, re.MULTILINE)
    listed = {_name(each) for cell in cells for each in re.sub(r"\(.*?\)", "", cell).split(", ")}
    assert required - listed == {"hatchling"}  # in the last paragraph
    assert "hatchling" in page
    npm = json.loads((ROOT / "requirements/npm/package.json").read_text("utf-8"))["dependencies"]
    vendored = {"htmx", "uPlot", "swagger-ui-dist", "redoc"}
    assert listed - required == {
        "below",
        "starlette",
        "nginx",
        "promtool",
        "systemd-analyze",
        "libfaketime",
        *npm,
        *vendored,
    }


def _name(requirement: str) -> str:
    return re.split(r"[\[<>= ]", requirement, maxsplit=1)[0]


def test_messages_that_pages_explain_are_those_of_the_program() -> None:
    """Tables with the column "message" quote them; "..." stands for what varies."""
    told = list(_messages())
    tables = re.compile(r"^\| message \|.*\n\|[ -|]+\n((?:\|.*\n)+)", re.MULTILINE)
    quoted = [
        row.split("|")[1].strip().removeprefix("(log) ")
        for page in PAGES.values()
        for rows in tables.findall(page)
        for row in rows.splitlines()
    ]
    assert len(quoted) > 12
    unknown = []
    for message in quoted:
        parts = [part.strip() for part in re.split(r"\.\.\.|8000|127\.0\.0\.1", message)]
        if not any(all(part in each for part in parts) for each in told):
            unknown.append(message)
    assert unknown == []


def _messages() -> Iterator[str]:
    """Yield every text of src/, with {} for what is put into it."""
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "{}"
                    for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_sphinx_builds_without_a_warning(tmp_path: Path) -> None:
    """As `make docs` does. Every page is reachable from the front page."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "html" / "index.html").exists()
    assert (tmp_path / "html" / "operate" / "runbooks.html").exists()
