"""The proxy that stands for a host which hangs."""

import socket
from pathlib import Path

from tests.support.databases.frozen_proxy import FrozenProxy
from tests.support.programs.running import wait_until

CONNECTIONS = 20


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_closed_connection_costs_no_descriptor() -> None:
    """A cluster is asked for its leader thousands of times in a run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with FrozenProxy(f"http://127.0.0.1:{port}") as proxy:
            before = open_descriptors()
            for _ in range(CONNECTIONS):
                with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
                    served, _ = server.accept()
                    client.sendall(b"asked")
                    assert served.recv(16) == b"asked"
                    served.close()
                    assert client.recv(16) == b""
            wait_until(lambda: open_descriptors() <= before, 10)
