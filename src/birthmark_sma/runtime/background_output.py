"""Write stdout and stderr in a background thread, so that a slow reader never blocks the server.

A write to a full pipe, or to a paused terminal, blocks until its reader reads. Here only the writer
thread waits. Up to 16 MiB of output is buffered meanwhile; lines beyond that are dropped and
counted. `web.logs` and `web.server` use it. `put` never waits for the reader.
"""

import contextlib
import io
import os
import sys
import threading
from collections import deque
from multiprocessing.util import Finalize
from typing import cast

_WRITE_SECONDS = 0.1  # between two writes, so that lines share a system call
_CLOSE_SECONDS = 1.0
_LAST = -100  # a low priority runs late, after other exit handlers have printed
_MOST_BYTES = 16 * 1024 * 1024  # buffered in memory
# PIPE_BUF on Linux: a write of up to this size to a pipe is atomic, so lines of several processes
# do not mix.
_CHUNK_BYTES = 4_096


LEFT_OUT = "%d lines were left out"


class BackgroundOutput:
    """A buffer for a file descriptor, and the thread that writes it. Safe to use from any thread.

    `note_left_out` is the line, with %d for the number, that is written after lines were dropped.
    """

    def __init__(self, descriptor: int, note_left_out: str = LEFT_OUT) -> None:
        self.descriptor = descriptor
        self.left_out = 0
        """The number of parts (lines) that were dropped since the start."""
        self._note = note_left_out
        self._told = 0  # how many of the dropped lines were reported in the output
        self._parts: deque[bytes] = deque()  # guarded by _lock, as is _size
        self._size = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._run, name=f"output-{descriptor}", daemon=True)
        self._writer.start()

    def put(self, part: bytes) -> None:
        """Queue a part for writing, or drop and count it if the buffer is full."""
        with self._lock:
            if self._size + len(part) > _MOST_BYTES:
                self.left_out += 1
                return
            self._parts.append(part)
            self._size += len(part)
        if self._closing.is_set():
            self._write_once_more()

    def close(self) -> None:
        """Write the buffer for at most 1 second. Each later `put` is also written for 1 second."""
        self._closing.set()
        self._writer.join(_CLOSE_SECONDS)

    def _write_once_more(self) -> None:
        """Write output that arrives after `close`, while the process ends."""
        if self._writer.is_alive():
            return  # it is blocked, or it will write this part
        self._writer = threading.Thread(target=self.write_all, daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter no longer starts threads
            self._writer.start()
            self._writer.join(_CLOSE_SECONDS)

    # --- the methods below run in the writer thread

    def write_all(self) -> None:
        """Write the whole buffer, in the calling thread. An error drops and counts a chunk."""
        while chunk := self._next_chunk():
            try:
                self._write(b"".join(chunk))
            except OSError:  # the reader has closed the pipe, or the disk is full
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
            except BlockingIOError:  # another process that shares the descriptor set O_NONBLOCK
                if self._closing.wait(_WRITE_SECONDS):
                    raise


class _Raw(io.RawIOBase):
    """The binary stream below `sys.stdout` and `sys.stderr`; overrides io.RawIOBase's methods."""

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
"""The outputs of this process by descriptor. One for each, so that their lines stay in order."""


def open_output(descriptor: int, note_left_out: str = LEFT_OUT) -> BackgroundOutput:
    """Return the background output of a descriptor, and create it if needed.

    When the process ends, the rest of the buffer is written for at most 1 second. `note_left_out`
    is the line, with %d for the number, that is written after lines were dropped.
    """
    if descriptor not in _outputs:
        _outputs[descriptor] = output = BackgroundOutput(descriptor, note_left_out)
        # Unlike `atexit`, this also runs at the end of a process that multiprocessing started.
        Finalize(None, output.close, exitpriority=_LAST)
    return _outputs[descriptor]


def count_left_out() -> int:
    """Return the number of lines that this process has dropped."""
    # `list` copies the values, because another thread may add an output.
    return sum(each.left_out for each in list(_outputs.values()))


def write_in_background(note_left_out: str) -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams that write in the background."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            descriptor = stream.fileno()
        except (AttributeError, OSError, ValueError):  # no stream, or a test's without descriptor
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
