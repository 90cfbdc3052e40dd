"""Request log: write one line for each request, as JSON or for a terminal.

`RequestMetrics` calls this after each response. It formats the line itself, because a structlog
record costs as much as the validation of a camera token. `background_output` writes the line in a
thread, so a request must never wait for the log.
"""

import json
import re
import time
from enum import Enum

from birthmark_sma.runtime.background_output import BackgroundOutput
from birthmark_sma.runtime.redaction import without_keys
from birthmark_sma.web.request_context import RequestContext

_MOST_PATH_CHARACTERS = 200
# Most paths: they need no JSON escaping and cannot forge a log line.
_PLAIN = re.compile(r"[A-Za-z0-9/._-]*")

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_COLOURS = {2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31;1m", 0: "\x1b[33m"}
"""ANSI colour for the first digit of a status: green, cyan, yellow, red. 0: the client left."""


class LogStyle(Enum):
    """The format of the log."""

    JSON = "json"
    PLAIN = "plain"
    COLOURED = "coloured"


class RequestLog:
    """Writes one line for each request to an output. One event loop must add all lines."""

    def __init__(self, output: BackgroundOutput, *, look: LogStyle) -> None:
        self._output = output
        self._look = look
        self._as_json = look is LogStyle.JSON
        # Cache: the time is formatted once a second, not once a line.
        self._second = 0
        self._stamp = ""

    def note(self, context: RequestContext, nanoseconds: int) -> None:
        """Add the line of a request. Status 0 means that the client left before its response."""
        caller, status, who = context.caller, context.status, context.address or "-"
        key = "-" if caller is None or caller.key is None else caller.key.key_id
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            between = "T" if self._as_json else " "
            self._stamp = time.strftime(f"%Y-%m-%d{between}%H:%M:%S", time.gmtime(self._second))
        if self._as_json:
            # Only the path needs escaping: ids, keys and addresses contain safe characters only.
            line = (
                f'{{"timestamp":"{self._stamp}.{int(now % 1 * 1000):03}Z","level":"info",'
                f'"event":"request","method":"{context.method}","path":{_path(context.path)},'
                f'"status":{status},"duration_ms":{nanoseconds / 1e6:.3f},"key":"{key}",'
                f'"address":"{who}","request_id":"{context.request_id}"}}\n'
            )
        else:
            colour, dim, reset = "", "", ""
            if self._look is LogStyle.COLOURED:
                colour, dim, reset = _COLOURS.get(status // 100, ""), _DIM, _RESET
            line = (
                f"{dim}{self._stamp}.{int(now % 1 * 1000):03}{reset}"
                f"  {colour}{status or 'left':<4}{reset}{nanoseconds / 1e6:>9.1f} ms"
                f"  {context.method:<4} {_path(context.path)[1:-1]}"
                f"  {dim}{who}{'' if key == '-' else ' ' + key} {context.request_id}{reset}\n"
            )
        self._output.put(line.encode())


def _path(path: str) -> str:
    """Return a path as a JSON string of at most 200 characters, with access keys redacted."""
    if _PLAIN.fullmatch(path) and len(path) <= _MOST_PATH_CHARACTERS and "sma_" not in path:
        return f'"{path}"'
    return json.dumps(without_keys(path[:_MOST_PATH_CHARACTERS]))
