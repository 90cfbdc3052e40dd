"""A TCP proxy on loopback that can freeze, like a host that hangs.

While it is frozen it accepts connections and the kernel acknowledges every packet, but nothing is
passed on, in either direction. That is what a stopped virtual machine behind a load balancer, or a
PostgreSQL that was sent SIGSTOP, looks like to a client.
"""

import contextlib
import socket
import threading
from collections.abc import Collection
from typing import Self
from urllib.parse import urlsplit

_CHUNK_BYTES = 65536
_STOP_SECONDS = 10.0


class FrozenProxy:
    """Passes connections on to the server of `url`. Use it as a context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        """The port on 127.0.0.1."""
        user = parts.netloc.rpartition("@")[0]
        self.url = parts._replace(netloc=f"{user}@127.0.0.1:{self.port}").geturl()
        """The URL, through this proxy."""
        self._flows = threading.Event()
        self._flows.set()
        self._closed = False
        self._broken: Collection[socket.socket] = ()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def freeze(self) -> None:
        """Pass nothing on from now on."""
        self._flows.clear()

    def thaw(self) -> None:
        """Pass on what has gathered, and everything after it."""
        self._flows.set()

    def break_connections(self) -> None:
        """Let each open connection end at its next message, as behind a pooler that crashed."""
        self._broken = frozenset(self._sockets)

    def close(self) -> None:
        """Close the listener and all connections."""
        self._closed = True
        self._flows.set()
        for each in (self._listener, *list(self._sockets)):
            # shutdown() ends the thread that waits for this socket; close() alone does not.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._flows.wait()  # a frozen host does not even connect
        try:
            server = socket.create_connection(self._target, timeout=_STOP_SECONDS)
        except OSError:
            self._sockets.remove(client)
            client.close()
            return
        server.settimeout(None)
        self._sockets.append(server)
        back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
        back.start()
        self._pass_on(client, server)
        back.join()
        for each in (client, server):
            self._sockets.remove(each)
            each.close()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                self._flows.wait()
                if source in self._broken:
                    break
                sink.sendall(data)
        self._flows.wait()
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def through_all(*proxies: FrozenProxy) -> str:
    """Return the URL of a cluster whose nodes are behind these proxies."""
    parts = urlsplit(proxies[0].url)
    user = parts.netloc.rpartition("@")[0]
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in proxies)
    return parts._replace(netloc=f"{user}@{hosts}").geturl()
