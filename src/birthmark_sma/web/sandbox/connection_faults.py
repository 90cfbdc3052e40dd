"""The HTTP protocol of a sandbox: it marks every response and can cut a connection.

uvicorn makes one `SandboxHttpProtocol` for each connection. `fault_injection` calls the function
that the protocol puts into the scope, because ASGI has no message that closes a connection.
"""

import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, cast

import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from birthmark_sma.web.sandbox.scenario_catalog import MARK, MARKED
from birthmark_sma.web.transport.client_identity import ClientIdentityProtocol

CUT = "sandbox_cut"
"""The key in a request's scope of the function that cuts its connection."""
Cut: TypeAlias = Callable[[bool], None]
"""Cut the connection at once: with RST if the argument is true, else like a process that ends."""


class SandboxHttpProtocol(ClientIdentityProtocol):
    """HTTP protocol that adds a function to each scope, which cuts the connection."""

    # For error responses that the protocol sends itself. `use_sandbox_protocol` marks the others.
    _fields_of_refusals = f"{MARK}: {MARKED}\r\n".encode()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cast("Scope", cycle.scope)[CUT] = partial(_cut, self)
        super()._start_asgi_task(cycle, app)


def _cut(protocol: SandboxHttpProtocol, reset: bool) -> None:  # noqa: FBT001
    found = protocol.transport.get_extra_info("socket")
    if reset and found is not None:
        # A linger time of 0 seconds makes Linux and macOS send RST. POSIX does not define this.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    protocol.transport.abort()


def use_sandbox_protocol(config: uvicorn.Config) -> None:
    """Make a server use `SandboxHttpProtocol` and mark all its responses."""
    config.http = SandboxHttpProtocol
    config.headers = [*config.headers, (MARK, MARKED)]
