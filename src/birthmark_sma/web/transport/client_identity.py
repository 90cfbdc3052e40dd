"""Say in the ASGI scope who is at the far end: a client certificate, or whom a proxy speaks for.

It is done in the HTTP protocol, as camera tokens are answered without ASGI's layers, and in a class
of its own, so that a server with neither TLS nor proxies does nothing for it.
"""

import asyncio
import ssl
from typing import Any, cast

from starlette.types import Scope

from birthmark_sma.web.transport.fast_path import DirectHttpProtocol
from birthmark_sma.web.transport.protocol import BoundedConfig
from birthmark_sma.web.transport.proxy_headers import TrustedProxies
from birthmark_sma.web.transport.write_coalescing import CoalescingTransport

_GOODBYE_SECONDS = 3.0

# As the TLS extension of ASGI numbers them (RFC 8446, section 4.2.1).
_VERSIONS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}


class ClientIdentityProtocol(DirectHttpProtocol):
    """Looks at the far end once a connection, and at what a trusted proxy adds once a request."""

    _tls: "_TlsWrites | None" = None
    _extensions: dict[str, Any] | None = None  # with TLS; shared by the connection's requests
    _proxies: TrustedProxies | None = None  # where the peer is one of them

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See who is there."""
        DirectHttpProtocol.connection_made(self, transport)
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self.transport = self._tls = _TlsWrites(transport, self.loop)  # type: ignore[assignment]
            self._extensions = {"tls": tls_extension(ssl_object)}
        proxies = self.config.trusted_proxies if isinstance(self.config, BoundedConfig) else None
        if proxies is not None and self.client is not None and proxies.trusts(self.client[0]):
            self._proxies = proxies

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        if self._tls is not None:
            self._tls.stop_waiting()
        DirectHttpProtocol.connection_lost(self, exc)

    def on_message_begin(self) -> None:
        """Put what is known of the connection into the scope of a request."""
        DirectHttpProtocol.on_message_begin(self)
        if self._extensions is not None:
            cast("Scope", self.scope)["extensions"] = self._extensions

    def on_headers_complete(self) -> None:
        """Take a trusted proxy at its word, before anything else reads the scope."""
        if self._proxies is not None:
            origin = self._proxies.origin(self.headers)
            if origin is not None:
                scope = cast("Scope", self.scope)
                scope["client"] = (origin.address, origin.port)
                scope["scheme"] = origin.scheme or scope["scheme"]
        DirectHttpProtocol.on_headers_complete(self)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """TLS cannot be closed on one side alone here: asyncio closes both, whatever is said."""
        return None if self._extensions is not None else DirectHttpProtocol.eof_received(self)


class _TlsWrites(CoalescingTransport):
    """Closes without waiting for long until the other side says goodbye.

    It need not (RFC 8446, section 6.1), and a client that keeps a connection for later does not
    even look. asyncio would wait half a minute, and a server that is to stop would wait with it.
    """

    __slots__ = ("_waiting",)

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(transport, loop)
        self._waiting: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Send what is held and our goodbye."""
        super().close()
        if self._waiting is None:
            self._waiting = self._loop.call_later(_GOODBYE_SECONDS, self._end)

    def stop_waiting(self) -> None:
        """The connection is gone."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _end(self) -> None:
        if self._transport.get_write_buffer_size():  # an answer that is still being read
            self._waiting = self._loop.call_later(_GOODBYE_SECONDS, self._end)
        else:
            self._transport.abort()


def tls_extension(connection: ssl.SSLObject) -> dict[str, Any]:
    """Return the TLS extension of ASGI, version 0.2, for a connection.

    Beside the names that the extension has, `client_cert_der` is the verified certificate of the
    client as DER, or None where it showed none.
    """
    return {
        "server_cert": None,
        "tls_version": _VERSIONS.get(connection.version() or ""),
        "cipher_suite": None,
        "client_cert_der": connection.getpeercert(binary_form=True),
    }
