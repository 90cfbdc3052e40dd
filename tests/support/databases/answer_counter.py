"""A TCP proxy before PostgreSQL that counts round trips."""

import contextlib
import re
import socket

from tests.support.databases.frozen_proxy import FrozenProxy

_CHUNK_BYTES = 65536
_READY_FOR_QUERY = re.compile(rb"Z\x00\x00\x00\x05[ITE]")  # ends each answer of the server


class AnswerCounter(FrozenProxy):
    """Passes connections on to the server of `url`, and counts what the server answers."""

    def __init__(self, url: str) -> None:
        self.answers = 0
        """The number of answers so far: one for each round trip."""
        super().__init__(url)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                self._flows.wait()
                self.answers += len(_READY_FOR_QUERY.findall(data))
                sink.sendall(data)
        self._flows.wait()
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
