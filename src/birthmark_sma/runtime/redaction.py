"""What may not stand in any log, whoever writes it: keys, values, what moves a cursor."""

import re
import traceback
from typing import TextIO

from structlog.typing import ExcInfo

_KEY = re.compile(r"sma_\w+")
# PostgreSQL quotes the row that it refuses: of a camera token, or with an Idempotency-Key.
_REFUSED_ROW = re.compile(r"(DETAIL:).*?(?=\n\[SQL|\n\n|\Z)", re.DOTALL)


def without_keys(text: str) -> str:
    """Return a text in which nothing looks like an access key any more."""
    return _KEY.sub("sma_...", text)


def printable(text: str, *, kept: str = "") -> str:
    """Return a text that moves no cursor and begins no line: the rest is written as in Python."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )


def format_traceback(exc_info: ExcInfo) -> str:
    """Return a traceback without local variables and without the values of a database's row."""
    return _REFUSED_ROW.sub(r"\1 ...", "".join(traceback.format_exception(*exc_info))).rstrip("\n")


def write_traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """The same, for a terminal."""
    out.write("\n" + printable(format_traceback(exc_info), kept="\n"))
