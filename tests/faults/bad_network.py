"""A TCP proxy on loopback for networks that are cut, slow, or lose what one side says."""

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.databases.frozen_proxy import FrozenProxy

_CHUNK_BYTES = 65536
_POLL_SECONDS = 0.05


class BadNetwork(FrozenProxy):
    """Passes connections on to the server of `url`. Each fault lasts for a block."""

    def __init__(self, url: str) -> None:
        self._is_cut = False
        self._swallows = False
        self._delay = 0.0
        super().__init__(url)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Close all connections, and each new one."""
        self._is_cut = True
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        yield
        self._is_cut = False

    @contextmanager
    def swallowing_answers(self) -> Iterator[None]:
        """Bring the server what clients say, and lose its answers.

        Connections that lost an answer are closed at the end.
        """
        self._swallows = True
        yield
        self._swallows = False

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Take `seconds` more in each direction."""
        self._delay = seconds
        yield
        self._delay = 0.0

    def _connect(self, client: socket.socket) -> None:
        if self._is_cut:
            client.close()
            return
        super()._connect(client)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            answers = source.getpeername()[1] == self._target[1]
            while data := source.recv(_CHUNK_BYTES):
                self._flows.wait()
                if self._delay:
                    time.sleep(self._delay)
                if answers and self._swallows:
                    break
                sink.sendall(data)
        while self._swallows and not self._closed:  # nobody hears of the end of a connection
            time.sleep(_POLL_SECONDS)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
