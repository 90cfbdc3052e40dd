"""uvicorn's settings with those of this server, and the methods of uvicorn that it replaces.

`web.server` makes the settings and calls `check_uvicorn` before it listens. The protocols of this
folder read the settings.
"""

import asyncio

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from birthmark_sma.runtime.library_methods import require_methods
from birthmark_sma.web.transport.proxy_headers import TrustedProxies
from birthmark_sma.web.transport.request_task import TurnBudget

REQUEST_SECONDS = 30.0

METHODS = {
    HttpToolsProtocol: (
        *("connection_made", "connection_lost", "data_received", "eof_received"),
        *("on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body"),
        *("on_message_complete", "on_response_complete", "send_400_response"),
        *("_unsupported_upgrade_warning", "_start_asgi_task", "shutdown"),
    ),
    RequestResponseCycle: ("run_asgi", "send"),
    FlowControl: ("pause_reading", "resume_reading"),
}
"""The methods of uvicorn that the protocols override or call. pyproject.toml allows one minor
version of uvicorn, because some of them are private."""


class BoundedConfig(uvicorn.Config):
    """uvicorn's settings with two more for the protocols of this package.

    `request_seconds` is the time in seconds in which a request must be complete.
    """

    request_seconds = REQUEST_SECONDS
    trusted_proxies: TrustedProxies | None = None
    _budget: TurnBudget | None = None

    def turn_budget(self, loop: asyncio.AbstractEventLoop) -> TurnBudget:
        """Return the budget that all connections of this process share."""
        if self._budget is None:
            self._budget = TurnBudget(loop)
        return self._budget


def check_uvicorn() -> None:
    """Raise ConfigurationError if the installed uvicorn lacks a method that is overridden."""
    for owner, names in METHODS.items():
        require_methods("uvicorn", owner, names)
