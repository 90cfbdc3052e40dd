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

from starlette.types import Scope

from birthmark_sma.web.request_ids import request_id_of

_WRITE_SECONDS = 0.1
_MOST_LINES = 50_000  # in memory
_MOST_PATH_CHARACTERS = 200
_CHUNK_BYTES = 4_096  # what a pipe takes as a whole, so that lines of processes do not mingle
_KEY = re.compile(r"sma_\w*")
_PLAIN = re.compile(r"[A-Za-z0-9/._-]*")


class RequestLog:
    """Writes lines to a file descriptor. Lines are added by one event loop."""

    def __init__(self, descriptor: int = 2, *, as_json: bool) -> None:
        self._descriptor = descriptor
        self._as_json = as_json
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
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self._second))
        if self._as_json:
            self._lines.append(
                f'{{"timestamp":"{self._stamp}.{int(now % 1 * 1000):03}Z","level":"info",'
                f'"event":"request","method":"{scope["method"]}","path":{_path(scope["path"])},'
                f'"status":{status},"duration_ms":{nanoseconds / 1e6:.3f},"key":"{key}",'
                f'"address":"{client[0] if client else "-"}",'
                f'"request_id":"{request_id_of(scope)}"}}\n'
            )
        else:
            self._lines.append(
                f"{self._stamp}.{int(now % 1 * 1000):03}Z [info     ]"
                f" {scope['method']} {_path(scope['path'])[1:-1]} {status}"
                f" {nanoseconds / 1e6:.1f} ms  address={client[0] if client else '-'} key={key}"
                f" request_id={request_id_of(scope)}\n"
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
            lines.append(
                f'{{"level":"warning","event":"{left_out} lines of requests were left out"}}\n'
            )


def _path(path: str) -> str:
    """Return a path as a JSON string, not too long, and without what looks like a key."""
    if _PLAIN.fullmatch(path) and len(path) <= _MOST_PATH_CHARACTERS and "sma_" not in path:
        return f'"{path}"'
    return json.dumps(_KEY.sub("sma_...", path[:_MOST_PATH_CHARACTERS]))
