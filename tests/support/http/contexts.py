"""Make the context of a request without a server."""

from collections.abc import Sequence
from typing import Any

from birthmark_sma.web.request_context import Header, RequestContext, begin_request


def make_context(
    path: str = "/",
    method: str = "GET",
    *,
    scheme: str = "http",
    headers: Sequence[Header] = (),
    client: tuple[str, int] | None = ("127.0.0.1", 1),
    tls: dict[str, Any] | None = None,
) -> RequestContext:
    """Return the context of a request with this head."""
    return begin_request(
        {
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
    )
