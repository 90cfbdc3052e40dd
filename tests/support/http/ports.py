"""Ports of 127.0.0.1. No other program can take one that is reserved or closed."""

import functools
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

_PORTS = range(20_000, 32_000)
"""Linux gives its connections the ports from 32,768, other systems those from 49,152."""


def _bound() -> socket.socket:
    bound = socket.socket()
    # A server of the test may listen on the port later: both sockets have this option (Linux).
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    return bound


def free_port() -> int:
    """Return a port on which nothing listens now. Another test may take it.

    The system gives its connections none of these ports. So a server that is started again on its
    port does not find it taken.
    """
    return next(filter(_is_free, secrets.SystemRandom().sample(_PORTS, 100)))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


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
