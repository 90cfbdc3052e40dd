"""Remove from log text what no log may contain: access keys, row values, control characters.

`web.logs` passes text through these functions before it is written.
"""

import re
import traceback
from typing import TextIO

from structlog.typing import ExcInfo

_KEY = re.compile(r"sma_\w+")
# PostgreSQL's DETAIL line quotes the row that violates a constraint. The row may hold values of a
# camera token or an Idempotency-Key.
_REFUSED_ROW = re.compile(r"(DETAIL:).*?(?=\n\[SQL|\n\n|\Z)", re.DOTALL)


def without_keys(text: str) -> str:
    """Return the text with everything that looks like an access key replaced by `sma_...`."""
    return _KEY.sub("sma_...", text)


def printable(text: str, *, kept: str = "") -> str:
    """Return the text with unprintable characters escaped as in Python, except those in `kept`.

    This prevents log injection: no caller can begin a new line or move the terminal's cursor.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )


def format_traceback(exc_info: ExcInfo) -> str:
    """Return the traceback as text, without local variables and without values of database rows."""
    return _REFUSED_ROW.sub(r"\1 ...", "".join(traceback.format_exception(*exc_info))).rstrip("\n")


def write_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """Write the traceback of `format_traceback` to a terminal, with control characters escaped."""
    out.write("\n" + printable(format_traceback(exc_info), kept="\n"))
