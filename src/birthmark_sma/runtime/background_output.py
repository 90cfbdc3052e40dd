"""Write a server's output in a thread, so that a pipe that nobody reads stops nothing.

A write to a full pipe, or to a terminal that was paused, blocks until somebody reads. Here only the
writing thread waits. What comes meanwhile is kept up to a bound; more is left out and counted.
"""

import contextlib
import io
import os
import sys
import threading
from collections import deque
from multiprocessing.util import Finalize
from typing import cast

_WRITE_SECONDS = 0.1
_CLOSE_SECONDS = 1.0
_LAST = -100
_MOST_BYTES = 16 * 1024 * 1024  # in memory
_CHUNK_BYTES = 4_096  # what a pipe takes as a whole, so that lines of processes do not mingle


LEFT_OUT = "%d lines were left out"


class BackgroundOutput:
    """Writes to a file descriptor. Parts may be put in by any thread, and none ever waits."""

    def __init__(self, descriptor: int, note_left_out: str = LEFT_OUT) -> None:
        self.descriptor = descriptor
        self.left_out = 0
        """The number of parts, which are lines, that were left out since the beginning."""
        self._note = note_left_out
        self._told = 0  # how many of these the output itself has named
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._run, name=f"output-{descriptor}", daemon=True)
        self._writer.start()

    def put(self, part: bytes) -> None:
        """Have a part written, unless too much waits already."""
        with self._lock:
            if self._size + len(part) > _MOST_BYTES:
                self.left_out += 1
                return
            self._parts.append(part)
            self._size += len(part)
        if self._closing.is_set():
            self._write_once_more()

    def close(self) -> None:
        """Write what waits, for a second at most. So is each part that is put in later."""
        self._closing.set()
        self._writer.join(_CLOSE_SECONDS)

    def _write_once_more(self) -> None:
        """Write the last words of a process that ends."""
        if self._writer.is_alive():
            return  # it is stuck, or will write them
        self._writer = threading.Thread(target=self.write_all, daemon=True)
        with contextlib.suppress(RuntimeError):  # too late for threads
            self._writer.start()
            self._writer.join(_CLOSE_SECONDS)

    # --- below: the writing thread

    def write_all(self) -> None:
        """Write what waits, in this thread."""
        while chunk := self._next_chunk():
            try:
                self._write(b"".join(chunk))
            except OSError:  # nobody is there any more, or the disk is full
                with self._lock:
                    self.left_out += len(chunk)
                return

    def _run(self) -> None:
        while not self._closing.wait(_WRITE_SECONDS):
            self.write_all()
        self.write_all()

    def _next_chunk(self) -> list[bytes]:
        with self._lock:
            if not self._parts and self.left_out > self._told:
                told, self._told = self.left_out - self._told, self.left_out
                return [self._note.encode() % told + b"\n"]
            chunk: list[bytes] = []
            size = 0
            while self._parts and (not chunk or size + len(self._parts[0]) <= _CHUNK_BYTES):
                chunk.append(self._parts.popleft())
                size += len(chunk[-1])
            self._size -= size
            return chunk

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:  # whoever shares the other end has set it to O_NONBLOCK
                if self._closing.wait(_WRITE_SECONDS):
                    raise


class _Raw(io.RawIOBase):
    """The binary stream below `sys.stdout` and `sys.stderr`."""

    def __init__(self, output: BackgroundOutput) -> None:
        super().__init__()
        self._output = output

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._output.descriptor

    def isatty(self) -> bool:
        return os.isatty(self._output.descriptor)

    def write(self, data: object, /) -> int:
        part = bytes(cast("bytes", data))
        self._output.put(part)
        return len(part)


_outputs: dict[int, BackgroundOutput] = {}
"""Those of this process, by descriptor."""


def open_output(descriptor: int, note_left_out: str = LEFT_OUT) -> BackgroundOutput:
    """Return what writes to a descriptor in the background.

    What waits at the end of the process is written for a second at most. `note_left_out` is the
    line, with %d for how many, that stands where others were left out.
    """
    if descriptor not in _outputs:
        _outputs[descriptor] = output = BackgroundOutput(descriptor, note_left_out)
        # At the end of every process, also of one that multiprocessing made.
        Finalize(None, output.close, exitpriority=_LAST)
    return _outputs[descriptor]


def count_left_out() -> int:
    """Return how many lines of this process were left out."""
    return sum(each.left_out for each in list(_outputs.values()))


def write_in_background(note_left_out: str) -> None:
    """Let all that this process prints and logs from now on be written in the background."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError, ValueError):  # none, or one that a test has put there
            continue
        if descriptor in _outputs:
            continue
        text = io.TextIOWrapper(
            cast("io.BufferedWriter", _Raw(open_output(descriptor, note_left_out))),
            encoding=stream.encoding,
            errors=stream.errors,
            newline="\n",
            write_through=True,
        )
        setattr(sys, name, text)
