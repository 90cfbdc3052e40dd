"""Ports of 127.0.0.1 that no other program can take while a test uses them."""

import functools
import socket
from collections.abc import Iterator
from contextlib import contextmanager


def _bound() -> socket.socket:
    bound = socket.socket()
    # A server of the test may listen on the port later: both sockets have this option (Linux).
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that refuses connections until a server of the test listens on it."""
    with _bound() as bound:
        port: int = bound.getsockname()[1]
        yield port


_kept = functools.cache(_bound)


def closed_port() -> int:
    """Return a port that refuses connections until the end of this process."""
    port: int = _kept().getsockname()[1]
    return port
