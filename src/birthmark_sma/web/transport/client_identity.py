"""Put the client's identity into the ASGI scope: its TLS certificate and its address.

uvicorn makes one `ClientIdentityProtocol` for each connection. ASGI has no access to the connection
and its certificate, so this happens in the HTTP protocol.
A server without TLS and without trusted proxies uses `LimitedHttpProtocol` and pays nothing.
This module never authenticates a client. `web.middleware.authentication` does.
"""

import asyncio
import ssl
from typing import Any, cast

from starlette.types import Scope

from birthmark_sma.web.transport.protocol import LimitedHttpProtocol
from birthmark_sma.web.transport.proxy_headers import TrustedProxies
from birthmark_sma.web.transport.uvicorn_config import BoundedConfig

# asyncio waits 30 s for the peer's close_notify. That is longer than a server may take to stop.
_GOODBYE_SECONDS = 3.0

# The ASGI TLS extension uses the version numbers of RFC 8446, section 4.2.1.
_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


class ClientIdentityProtocol(LimitedHttpProtocol):
    """HTTP protocol that reads the certificate once a connection and proxy headers once a request.

    It must replace `scope["client"]` before any code reads the scope, because rate limits and the
    audit log use this address.
    """

    _tls: "_TlsTransport | None" = None
    _extensions: dict[str, Any] | None = None  # TLS only; all requests of a connection share it
    _proxies: TrustedProxies | None = None  # set only if the peer is a trusted proxy

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Read the client certificate, and check whether the peer is a trusted proxy."""
        LimitedHttpProtocol.connection_made(self, transport)
        # Replaces the transport that the base class has just set.
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self.transport = self._tls = _TlsTransport(transport, self.loop)  # type: ignore[assignment]
            self._extensions = {"tls": tls_extension(ssl_object)}
        proxies = self.config.trusted_proxies if isinstance(self.config, BoundedConfig) else None
        if proxies is not None and self.client is not None and proxies.trusts(self.client[0]):
            self._proxies = proxies

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the TLS close timer, then let the base class end the request."""
        if self._tls is not None:
            self._tls.stop_waiting()
        LimitedHttpProtocol.connection_lost(self, exc)

    def on_message_begin(self) -> None:
        """Add the TLS extension to the scope of the new request."""
        LimitedHttpProtocol.on_message_begin(self)
        if self._extensions is not None:
            cast("Scope", self.scope)["extensions"] = self._extensions

    def on_headers_complete(self) -> None:
        """Replace client address and scheme in the scope by those that a trusted proxy reports."""
        # Before the base class: it may start the endpoint, which reads the scope.
        if self._proxies is not None:
            origin = self._proxies.origin(self.headers)
            if origin is not None:
                scope = cast("Scope", self.scope)
                scope["client"] = (origin.address, origin.port)
                scope["scheme"] = origin.scheme or scope["scheme"]
        LimitedHttpProtocol.on_headers_complete(self)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Return None for TLS: asyncio cannot half-close TLS and ignores the return value."""
        return None if self._extensions is not None else LimitedHttpProtocol.eof_received(self)


class _TlsTransport:
    """Wrapper of a transport that waits at most `_GOODBYE_SECONDS` for the peer's close_notify.

    A side may close without waiting for the other's close_notify (RFC 8446, section 6.1). A client
    with an idle connection in its connection pool does not even read it. asyncio would wait half a
    minute, which would delay a server that has to stop.
    """

    __slots__ = ("_loop", "_transport", "_waiting")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._waiting: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Send close_notify, then abort after `_GOODBYE_SECONDS`."""
        self._transport.close()
        if self._waiting is None:
            self._waiting = self._loop.call_later(_GOODBYE_SECONDS, self._end)

    def stop_waiting(self) -> None:
        """Cancel the close timer after the connection was lost."""
        if self._waiting is not None:
            self._waiting.cancel()

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the wrapped transport."""
        return getattr(self._transport, name)

    def _end(self) -> None:
        if self._transport.get_write_buffer_size():  # the client still reads a response
            self._waiting = self._loop.call_later(_GOODBYE_SECONDS, self._end)
        else:
            self._transport.abort()


def tls_extension(connection: ssl.SSLObject) -> dict[str, Any]:
    """Return the ASGI TLS extension, version 0.2, for a connection.

    The extra key `client_cert_der` holds the verified client certificate as DER, or None if the
    client sent no certificate.
    """
    return {
        "server_cert": None,
        "tls_version": _VERSIONS.get(connection.version() or ""),
        "cipher_suite": None,
        "client_cert_der": connection.getpeercert(binary_form=True),
    }
