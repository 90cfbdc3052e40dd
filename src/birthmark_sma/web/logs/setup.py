"""Configure logging: structlog formats all records and writes them to stderr.

Each server process calls `configure` once at its start. The format is text on a terminal and JSON
otherwise. All loggers (this package, uvicorn, SQLAlchemy) use the standard library's `logging`.
A thread writes the output (`background_output`). `middleware.request_metrics` writes the lines
of requests, because a structlog record costs as much as the validation of a camera token.
"""

import logging
import os
import sys
from collections.abc import Callable
from enum import Enum

import structlog
from structlog import dev
from structlog.typing import EventDict, Processor, WrappedLogger

from birthmark_sma.config import LogFormat, Settings
from birthmark_sma.runtime.background_output import LEFT_OUT, write_in_background
from birthmark_sma.runtime.redaction import (
    format_traceback,
    printable,
    without_keys,
    write_traceback,
)
from birthmark_sma.web.request_context import requests_in_progress

_OURS = "birthmark_sma"
_MOST_REQUESTS = 8  # a log record of a batch contains at most this many request ids
_LEVELS = {
    "critical": dev.RED + dev.BRIGHT,
    "error": dev.RED + dev.BRIGHT,
    "warning": dev.YELLOW,
    "info": dev.GREEN,
    "debug": dev.DIM,
}
_LEVEL_CHARACTERS = 7


class LogStyle(Enum):
    """The format of the log."""

    JSON = "json"
    PLAIN = "plain"
    COLOURED = "coloured"


def log_style(settings: Settings) -> LogStyle:
    """Return the log style for the settings and the terminal.

    Colours need a terminal on stderr, no NO_COLOR variable, and a TERM other than "dumb".
    """
    terminal = sys.stderr.isatty()
    if settings.log_format is LogFormat.JSON or (
        settings.log_format is LogFormat.AUTO and not terminal
    ):
        return LogStyle.JSON
    colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return LogStyle.COLOURED if colours else LogStyle.PLAIN


def note_left_out(look: LogStyle) -> str:
    """Return the line that replaces dropped lines. It contains %d for their number."""
    if look is LogStyle.JSON:
        return f'{{"level":"warning","event":"{LEFT_OUT}"}}'
    return LEFT_OUT


def configure(settings: Settings) -> None:
    """Configure format and levels of all loggers of this process.

    From now on a thread writes everything that this process prints or logs, so no caller waits for
    a pipe that nobody reads. SIGHUP must be blocked before (`tls.block_sighup`), because this
    starts the first thread of the process.
    """
    look = log_style(settings)
    write_in_background(note_left_out(look))
    shared: list[Processor] = [structlog.stdlib.add_log_level, _name_requests]
    ending: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if look is LogStyle.JSON:
        shared += [
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ]
        ending += [
            structlog.processors.ExceptionRenderer(format_traceback),
            structlog.processors.JSONRenderer(),
        ]
    else:
        shared += [
            _name_others,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S.%f", utc=True),
        ]
        ending.append(
            dev.ConsoleRenderer(
                columns=_columns(colours=look is LogStyle.COLOURED),
                exception_formatter=write_traceback,
            )
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutKeys(foreign_pre_chain=shared, processors=ending))
    root = logging.getLogger()
    # Replaces all earlier handlers, so that each record is written once.
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(settings.log_level.value.upper())


class _WithoutKeys(structlog.stdlib.ProcessorFormatter):
    """Formatter that redacts access keys in the final text, whatever part of a record has them."""

    def format(self, record: logging.LogRecord) -> str:
        return without_keys(super().format(record))


def _columns(*, colours: bool) -> list[dev.Column]:
    """Return the columns of the text format: time, level, message, then all other fields."""
    dim, cyan, reset = (dev.DIM, dev.CYAN, dev.RESET_ALL) if colours else ("", "", "")
    levels = _LEVELS if colours else {}

    def level(_key: str, value: object) -> str:
        return f"{levels.get(str(value), '')}{value!s:<{_LEVEL_CHARACTERS}}{reset}"

    def what(_key: str, value: object) -> str:
        return printable(str(value).rstrip())

    def moment(_key: str, value: object) -> str:
        return f"{dim}{str(value)[:-3]}{reset} "  # milliseconds instead of microseconds

    def other(key: str, value: object) -> str:
        text = " ".join(value) if isinstance(value, list) else str(value)
        return f" {cyan}{key}{reset}{dim}={printable(text)}{reset}"

    cells = {"timestamp": moment, "level": level, "event": what, "": other}
    return [dev.Column(key, _Cell(write)) for key, write in cells.items()]


class _Cell(dev.ColumnFormatter):
    """Column of structlog's console renderer that a function formats."""

    def __init__(self, write: Callable[[str, object], str]) -> None:
        self._write = write

    def __call__(self, key: str, value: object) -> str:
        return self._write(key, value)


def _name_others(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the logger's name to records of other packages (text format only)."""
    record: logging.LogRecord = event["_record"]
    if not record.name.startswith(_OURS):
        event["logger"] = record.name
    return event


def _name_requests(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add the request id to a record, or the number and the first ids of a batch's requests."""
    ids = [context.request_id for context in requests_in_progress()]
    if len(ids) == 1:
        event["request_id"] = ids[0]
    elif ids:
        event["requests"] = len(ids)
        event["request_ids"] = ids[:_MOST_REQUESTS]
    return event
