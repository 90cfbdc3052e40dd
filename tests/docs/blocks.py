"""Read the code blocks of a page, and what the page says about each.

A block is a fence with a language. An HTML comment in front of it can say:

* `not run: REASON`: the block is shown only;
* `file: NAME`: the block is the content of a file, which the next commands use;
* `response`: the block is the JSON that the last command printed, with the same fields, verdict
  and problem. A status line of curl may follow it;
* `exit codes: 0, 1`: the commands may end with one of these.

Without a comment, `sh`, `python` and `sql` are run, `text` is compared with what the last block
printed (`*` stands for anything), and `json`, `toml` and `yaml` are parsed.
"""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUN = frozenset({"sh", "python", "sql"})
CHECKED = frozenset({"text", "json", "toml", "yaml"})
_FENCE = re.compile(
    r"(?:^ *<!-- (?P<mark>[^>]*?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """What the comment in front of it says before the colon, or an empty string."""
    argument: str
    """What the comment says after the colon."""

    @property
    def runs(self) -> bool:
        """True if a test runs or compares it."""
        return self.mark != "not run"

    def __str__(self) -> str:
        return f"docs/{self.page}:{self.line}"


def pages() -> list[str]:
    """Return the names of all pages, such as `operate/backup.md`."""
    return sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def read_blocks(page: str) -> Iterator[Block]:
    """Yield the code blocks of a page in its order. Directives of Sphinx are none."""
    content = (DOCS / page).read_text(encoding="utf-8")
    for found in _FENCE.finditer(content):
        if found["language"].startswith("{"):
            continue
        mark, _, argument = (found["mark"] or "").partition(":")
        yield Block(
            page,
            content.count("\n", 0, found.start("indent")) + 1,
            found["language"],
            textwrap.dedent(found["text"]),
            mark.strip(),
            " ".join(argument.split()),
        )
