"""The HTTP protocol of a sandbox: it marks every answer, and lets a connection be cut."""

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
"""Where in the scope of a request stands what cuts its connection."""
Cut: TypeAlias = Callable[[bool], None]
"""Cuts it at once: with RST where the argument says so, else as a process that ends does."""


class SandboxHttpProtocol(ClientIdentityProtocol):
    """Puts into the scope of each request what cuts its connection."""

    _fields_of_refusals = f"{MARK}: {MARKED}\r\n".encode()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cast("Scope", cycle.scope)[CUT] = partial(_cut, self)
        super()._start_asgi_task(cycle, app)


def _cut(protocol: SandboxHttpProtocol, reset: bool) -> None:  # noqa: FBT001
    found = protocol.transport.get_extra_info("socket")
    if reset and found is not None:
        # Lingering for no time is what makes the system say RST (POSIX leaves that open; Linux
        # and macOS do).
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    protocol.transport.abort()


def use_sandbox_protocol(config: uvicorn.Config) -> None:
    """Have a server use it, and mark whatever it answers."""
    config.http = SandboxHttpProtocol
    config.headers = [*config.headers, (MARK, MARKED)]
