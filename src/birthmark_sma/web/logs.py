"""Where log records go: through structlog to stderr, for a person on a terminal, else as JSON.

Ours, uvicorn's and SQLAlchemy's are records of the standard library alike. The lines of requests
are written by `request_log`, as this way costs as much as judging a camera token.
"""

import logging
import sys

import structlog
from structlog.typing import EventDict, WrappedLogger

from birthmark_sma.config import LogFormat, Settings
from birthmark_sma.web.request_ids import request_id_of, requests_at_work

_MOST_REQUESTS = 8  # of a batch, that a record about it names


def as_json(settings: Settings) -> bool:
    """Say whether the log is JSON."""
    if settings.log_format is LogFormat.AUTO:
        return not sys.stderr.isatty()
    return settings.log_format is LogFormat.JSON


def configure(settings: Settings) -> None:
    """Let every log record of this process go out as the settings say."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        _name_requests,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta
    ]
    if as_json(settings):
        ending += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Without the local variables that it would show beside a traceback: they may be secrets.
        plain = structlog.dev.plain_traceback
        ending.append(
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=ending)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("birthmark_sma").setLevel(settings.log_level.value.upper())


def _name_requests(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Say in a record which request it was written for; of a batch, the first ones and how many."""
    ids = [request_id_of(scope) for scope in requests_at_work()]
    if len(ids) == 1:
        event["request_id"] = ids[0]
    elif ids:
        event["requests"] = len(ids)
        event["request_ids"] = ids[:_MOST_REQUESTS]
    return event
