"""Where log records go: through structlog to stderr, for a person on a terminal, else as JSON.

Ours, uvicorn's and SQLAlchemy's are records of the standard library alike. The lines of requests
are written by `request_log`, as this way costs as much as judging a camera token.
"""

import logging
import sys

import structlog

from birthmark_sma.config import LogFormat, Settings


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
        structlog.stdlib.ExtraAdder(allow=("request_id",)),
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
