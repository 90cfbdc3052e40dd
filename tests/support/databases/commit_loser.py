"""A TCP proxy before PostgreSQL that loses COMMITs of the writers, or their answers."""

import contextlib
import re
import socket
from enum import Enum

from birthmark_sma.storage.outages.commit_marks import CommitMark, Timeouts
from birthmark_sma.storage.postgresql.pipeline import name_of
from tests.support.databases.frozen_proxy import FrozenProxy

_CHUNK_BYTES = 65536
# A message that runs COMMIT: a simple query, or one that binds a statement, which is prepared under
# its name or parsed without one. A message that only prepares the statement is none.
_COMMIT = re.compile(
    rb"Q\0\0\0.COMMIT\0|P\0\0\0.\0COMMIT\0|B\0\0\0.\0" + name_of("COMMIT"), re.DOTALL
)
_MARKS = tuple(
    each
    for timeouts in (None, Timeouts(1, 1))
    for text in [CommitMark("", 1).statement(timeouts).text]
    for each in (b"\0" + name_of(text), b"\0" + text.encode())
)


class Loss(Enum):
    """What a client loses. It always finds its connection closed."""

    REQUEST = "request"
    """The server does not get the COMMIT, and finds the connection closed as well."""
    UNNOTICED = "unnoticed"
    """The server does not get the COMMIT, and does not notice that the client is gone."""
    ANSWER = "answer"
    """The server gets the COMMIT. The connection is closed in place of its answer."""


class CommitLoser(FrozenProxy):
    """Passes connections on to the server of `url`, and loses what `lose` says."""

    def __init__(self, url: str) -> None:
        self._losses: list[Loss] = []
        self.lost = 0
        """The number of COMMITs that were lost, or their answers."""
        self._of_writers: set[socket.socket] = set()  # clients in a transaction with a commit mark
        self._muted: set[socket.socket] = set()  # servers whose next answer is lost
        super().__init__(url)

    def lose(self, *losses: Loss) -> None:
        """Lose the next COMMITs of transactions with a commit mark, one after the other."""
        self._losses += losses

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        loss = None
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                self._flows.wait()
                if source in self._muted:
                    break
                loss = self._loss_of(source, data)
                if loss is Loss.ANSWER:
                    self._muted.add(sink)
                if loss in (None, Loss.ANSWER):
                    sink.sendall(data)
                if loss is not None:
                    break
        if loss is Loss.ANSWER:
            return  # the other direction closes both when the answer is there
        self._flows.wait()
        closing = [source] if loss is Loss.UNNOTICED else [source, sink]
        for each in closing:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _loss_of(self, client: socket.socket, data: bytes) -> Loss | None:
        if b"BEGIN ISOLATION" in data:  # not that of a certificate
            self._of_writers.discard(client)
        if any(each in data for each in _MARKS):
            self._of_writers.add(client)
        if not _COMMIT.search(data) or client not in self._of_writers or not self._losses:
            return None
        self.lost += 1
        return self._losses.pop(0)
