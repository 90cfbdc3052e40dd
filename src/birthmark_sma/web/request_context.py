"""The state of one request, and its id.

`web.pipeline` makes a RequestContext for each request, and every step adds its part. It is in the
ASGI scope under CONTEXT, for code that gets nothing but the scope. The id appears in the response
and in every log record of the request. An id from a client must never reach the log unchecked: it
could forge log lines or contain an access key.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter_ns
from typing import Any, Protocol, TypeAlias, cast

from starlette.types import Scope

from birthmark_sma.authority.access.caller import Caller
from birthmark_sma.authority.access.session_store import Session
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.runtime.log_context import WORKING_FOR, AwaitedAnswer, current_requests
from birthmark_sma.web.routes import BY_RAW_PATH, Route, find_route

Header: TypeAlias = tuple[bytes, bytes]

CONTEXT = "birthmark"
"""The key in the ASGI scope for the RequestContext."""

HEADER = "X-Request-ID"
_NAME = HEADER.lower().encode()
_ACCEPTED = re.compile(rb"[A-Za-z0-9._~:/+=@,-]{1,128}")
_LIKE_A_KEY = b"sma_"  # access keys begin like this; the client sent one by mistake
_numbers = count()
_process = secrets.token_hex(6)


class Trace(Protocol):
    """The trace of one request (`middleware.tracing`)."""

    def parsing(self) -> None:
        """Record that the body is complete and parsing begins."""

    def parsed(self) -> None:
        """Record that parsing has ended and the query of the shared rate limit store begins."""

    def offered(self) -> None:
        """Record that the request is handed to the validator and waits for the writer."""

    def end(self, status: int) -> None:
        """End the trace. Status 0 means that the caller left before the response."""


@dataclass(slots=True, eq=False)
class RequestContext:
    """One request, from its head to its line in the log. Owned by the event loop.

    It must not refer to the ASGI scope, which refers to it: each request would leave a reference
    cycle to the garbage collector.
    """

    route: Route
    method: str
    path: str
    """The decoded path, for people. `route` decides."""
    scheme: str
    headers: Sequence[Header]
    host: bytes | None
    """The value of the Host field. The HTTP protocol accepts one at most."""
    address: str | None
    """The address of the client: its own, or what a trusted proxy says."""
    tls: dict[str, Any] | None
    """The TLS extension of the connection (`transport.client_identity`)."""
    request_id: str
    began: int
    """The start of the request, in nanoseconds of `perf_counter_ns`."""
    caller: Caller | None = None
    """Set by authentication, which the routes of probes pass over."""
    shows_session: bool = False
    """The request has the session cookie of the dashboard."""
    session: Session | None = None
    """The session of this cookie; None if it is unknown or over."""
    session_token: str | None = field(default=None, repr=False)
    added_headers: Sequence[Header] = ()
    """Header fields that the response gets, whatever its status."""
    status: int = 0
    """The status of the response; 0 until it begins."""
    trace: Trace | None = None
    reasons: Sequence[Reason] = ()
    """The reasons of the verdicts, for the log only: no response may contain them."""
    awaited_answer: AwaitedAnswer | None = None
    """The verdicts that wait for the writer, or that are on their way to the caller."""
    caller_left: bool = False
    """The HTTP protocol sets this when it cancels the request of a caller that has left."""

    @property
    def known_caller(self) -> Caller:
        """Return the caller, which authentication has set before any endpoint runs."""
        assert self.caller is not None  # noqa: S101
        return self.caller

    def alone(self) -> "tuple[RequestContext]":
        """Return this request as the only one that a task works for."""
        return (self,)

    def header_values(self, name: bytes) -> list[bytes]:
        """Return the values of all header fields of a name, which is in lower case."""
        return [value for each, value in self.headers if each == name]


def begin_request(scope: Scope) -> RequestContext:
    """Return the context of a new request, and bind it to the current task.

    Its id is the client's if it sent exactly one X-Request-ID of 1 to 128 characters that are safe
    in any log. Otherwise it is a new id.
    """
    raw_path, client, extensions = scope["raw_path"], scope["client"], scope.get("extensions")
    host = None
    given: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"host":
            host = value
        elif name == _NAME:
            given.append(value)
    method = scope["method"]
    route = BY_RAW_PATH.get(raw_path)
    if route is None or method not in route.methods:
        route = find_route(raw_path, method)
    scope[CONTEXT] = context = RequestContext(
        route,
        method,
        scope["path"],
        scope["scheme"],
        scope["headers"],
        host,
        None if client is None else client[0],
        None if extensions is None else extensions.get("tls"),
        given[0].decode("ascii") if len(given) == 1 and _is_safe(given[0]) else new_id(),
        perf_counter_ns(),
    )
    WORKING_FOR.set(context.alone)  # log records of this task and its threads name the request
    return context


def get_context(scope: Scope) -> RequestContext:
    """Return the context of a request."""
    context: RequestContext = scope[CONTEXT]
    return context


def requests_in_progress() -> Sequence[RequestContext]:
    """Return the requests that the current thread or task works for."""
    return cast("Sequence[RequestContext]", current_requests())


def new_id() -> str:
    """Return a new id that is unique among all processes of the server."""
    return f"{_process}-{next(_numbers):x}"


def _is_safe(given: bytes) -> bool:
    """Return true if a client's id may be in the log."""
    return _ACCEPTED.fullmatch(given) is not None and _LIKE_A_KEY not in given
