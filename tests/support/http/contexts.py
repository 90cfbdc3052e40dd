"""Make requests without a server: their ASGI scope, their context, and one whose caller leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from birthmark_sma.runtime.log_context import AwaitedAnswer
from birthmark_sma.web.request_context import Header, RequestContext, begin_request


@dataclass
class Asked:
    """A request whose caller can leave."""

    awaited_answer: AwaitedAnswer | None = None
    request_id: str = "asked"
    began: int = 0

    def leave(self) -> None:
        assert self.awaited_answer is not None
        self.awaited_answer.leave()


def make_scope(
    path: str = "/",
    method: str = "GET",
    *,
    scheme: str = "http",
    headers: Sequence[Header] = (),
    client: tuple[str, int] | None = ("127.0.0.1", 1),
    tls: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the ASGI scope of a request with this head."""
    return {
        "type": "http",
        "method": method,
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        "client": client,
        "extensions": {} if tls is None else {"tls": tls},
    }


def make_context(path: str = "/", method: str = "GET", **head: Any) -> RequestContext:
    """Return the context of a request; `head` is as for `make_scope`."""
    return begin_request(make_scope(path, method, **head))
