"""Where log records go: through structlog to stderr, for a person on a terminal, else as JSON.

A thread writes them (`background_output`).

Ours, uvicorn's and SQLAlchemy's are records of the standard library alike. The lines of requests
are written by `request_log`, as this way costs as much as judging a camera token.
"""

import logging
import os
import sys
from collections.abc import Callable

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
from birthmark_sma.web.logs.request_ids import get_request_id, requests_in_progress
from birthmark_sma.web.logs.request_log import LogStyle

_OURS = "birthmark_sma"
_MOST_REQUESTS = 8  # of a batch, that a record about it names
_LEVELS = {
    "critical": dev.RED + dev.BRIGHT,
    "error": dev.RED + dev.BRIGHT,
    "warning": dev.YELLOW,
    "info": dev.GREEN,
    "debug": dev.DIM,
}
_LEVEL_CHARACTERS = 7


def log_style(settings: Settings) -> LogStyle:
    """Say how the log looks: JSON, or for a person, in colours where a terminal shows them."""
    terminal = sys.stderr.isatty()
    if settings.log_format is LogFormat.JSON or (
        settings.log_format is LogFormat.AUTO and not terminal
    ):
        return LogStyle.JSON
    colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return LogStyle.COLOURED if colours else LogStyle.PLAIN


def note_left_out(look: LogStyle) -> str:
    """Return the line, with %d for how many, that stands where others were left out."""
    if look is LogStyle.JSON:
        return f'{{"level":"warning","event":"{LEFT_OUT}"}}'
    return LEFT_OUT


def configure(settings: Settings) -> None:
    """Let every log record of this process go out as the settings say.

    Whatever it prints or logs from now on is written by a thread: nobody waits for a pipe that is
    not read. It has no other thread yet that SIGHUP could reach (`tls.hold_hangups`).
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
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(settings.log_level.value.upper())


class _WithoutKeys(structlog.stdlib.ProcessorFormatter):
    """Has the last word, whatever a record was made of."""

    def format(self, record: logging.LogRecord) -> str:
        return without_keys(super().format(record))


def _columns(*, colours: bool) -> list[dev.Column]:
    """Say what a person sees: when, how urgent, what; and then whatever else is known."""
    dim, cyan, reset = (dev.DIM, dev.CYAN, dev.RESET_ALL) if colours else ("", "", "")
    levels = _LEVELS if colours else {}

    def level(_key: str, value: object) -> str:
        return f"{levels.get(str(value), '')}{value!s:<{_LEVEL_CHARACTERS}}{reset}"

    def what(_key: str, value: object) -> str:
        return printable(str(value).rstrip())

    def moment(_key: str, value: object) -> str:
        return f"{dim}{str(value)[:-3]}{reset} "

    def other(key: str, value: object) -> str:
        text = " ".join(value) if isinstance(value, list) else str(value)
        return f" {cyan}{key}{reset}{dim}={printable(text)}{reset}"

    cells = {"timestamp": moment, "level": level, "event": what, "": other}
    return [dev.Column(key, _Cell(write)) for key, write in cells.items()]


class _Cell(dev.ColumnFormatter):
    """A column that a function writes."""

    def __init__(self, write: Callable[[str, object], str]) -> None:
        self._write = write

    def __call__(self, key: str, value: object) -> str:
        return self._write(key, value)


def _name_others(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Say who writes, where it is none of ours: a person knows what he started."""
    record: logging.LogRecord = event["_record"]
    if not record.name.startswith(_OURS):
        event["logger"] = record.name
    return event


def _name_requests(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Say in a record which request it was written for; of a batch, the first ones and how many."""
    ids = [get_request_id(scope) for scope in requests_in_progress()]
    if len(ids) == 1:
        event["request_id"] = ids[0]
    elif ids:
        event["requests"] = len(ids)
        event["request_ids"] = ids[:_MOST_REQUESTS]
    return event
