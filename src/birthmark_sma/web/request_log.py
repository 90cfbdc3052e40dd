"""One line a request, at a cost that a camera token does not feel.

A line is put together at once and written a moment later by a thread, some at a time. Where nobody
reads what the server writes, lines are left out and counted; no request waits for the log.
"""

import json
import os
import re
import threading
import time
from collections import deque
from enum import Enum

from starlette.types import Scope

from birthmark_sma.web.redaction import without_keys
from birthmark_sma.web.request_ids import request_id_of

_WRITE_SECONDS = 0.1
_MOST_LINES = 50_000  # in memory
_MOST_PATH_CHARACTERS = 200
_CHUNK_BYTES = 4_096  # what a pipe takes as a whole, so that lines of processes do not mingle
_PLAIN = re.compile(r"[A-Za-z0-9/._-]*")

_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_COLOURS = {2: "\x1b[32m", 3: "\x1b[36m", 4: "\x1b[33m", 5: "\x1b[31;1m", 0: "\x1b[33m"}
"""By the first digit of a status: green, cyan, yellow, red."""


class Look(Enum):
    """How a log looks."""

    JSON = "json"
    PLAIN = "plain"
    COLOURED = "coloured"


class RequestLog:
    """Writes lines to a file descriptor. Lines are added by one event loop."""

    def __init__(self, descriptor: int = 2, *, look: Look) -> None:
        self._descriptor = descriptor
        self._look = look
        self._as_json = look is Look.JSON
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._second = 0
        self._stamp = ""
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._run, name="request-log", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    def close(self) -> None:
        """Write what waits, for a second at most."""
        self._closing.set()
        if self._writer.is_alive():
            self._writer.join(1.0)

    def note(self, scope: Scope, status: int, nanoseconds: int) -> None:
        """Add a line; status 0 says that the sender left before its answer."""
        if len(self._lines) >= _MOST_LINES:
            self._left_out += 1
            return
        caller, client = scope.get("caller"), scope["client"]
        key = "-" if caller is None or caller.key is None else caller.key.key_id
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            between = "T" if self._as_json else " "
            self._stamp = time.strftime(f"%Y-%m-%d{between}%H:%M:%S", time.gmtime(self._second))
        if self._as_json:
            self._lines.append(
                f'{{"timestamp":"{self._stamp}.{int(now % 1 * 1000):03}Z","level":"info",'
                f'"event":"request","method":"{scope["method"]}","path":{_path(scope["path"])},'
                f'"status":{status},"duration_ms":{nanoseconds / 1e6:.3f},"key":"{key}",'
                f'"address":"{client[0] if client else "-"}",'
                f'"request_id":"{request_id_of(scope)}"}}\n'
            )
        else:
            colour, dim, reset = "", "", ""
            if self._look is Look.COLOURED:
                colour, dim, reset = _COLOURS.get(status // 100, ""), _DIM, _RESET
            who = client[0] if client else "-"
            self._lines.append(
                f"{dim}{self._stamp}.{int(now % 1 * 1000):03}{reset}"
                f"  {colour}{status or 'left':<4}{reset}{nanoseconds / 1e6:>9.1f} ms"
                f"  {scope['method']:<4} {_path(scope['path'])[1:-1]}"
                f"  {dim}{who}{'' if key == '-' else ' ' + key} {request_id_of(scope)}{reset}\n"
            )

    # --- below: the writing thread

    def _run(self) -> None:
        while not self._closing.wait(_WRITE_SECONDS):
            self.write()
        self.write()

    def write(self) -> None:
        """Write what waits."""
        lines = self._lines
        while lines:
            chunk: list[bytes] = []
            size = 0
            while lines and (not chunk or size + len(lines[0]) <= _CHUNK_BYTES):
                chunk.append(lines.popleft().encode())
                size += len(chunk[-1])
            try:
                os.write(self._descriptor, b"".join(chunk))
            except OSError:  # nobody is there any more, or the disk is full
                self._left_out += len(chunk)
                return
        if self._left_out:
            left_out, self._left_out = self._left_out, 0
            what = f"{left_out} lines of requests were left out"
            if self._as_json:
                what = f'{{"level":"warning","event":"{what}"}}'
            lines.append(f"{what}\n")


def _path(path: str) -> str:
    """Return a path as a JSON string, not too long, and without what looks like a key."""
    if _PLAIN.fullmatch(path) and len(path) <= _MOST_PATH_CHARACTERS and "sma_" not in path:
        return f'"{path}"'
    return json.dumps(without_keys(path[:_MOST_PATH_CHARACTERS]))
