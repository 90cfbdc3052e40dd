"""Fast path: answer a request inside the HTTP protocol, without an ASGI task.

A task, its coroutines and the ASGI messages cost more than the validation of a camera token
(docs/adr/0007). A `DirectEndpoint` needs none of them: `begin` runs when the body is complete,
`finish` runs when the future of `begin` is done. Large bodies and errors take the normal path
through ASGI, which calls the same two methods. Both paths must give the same response.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any, Protocol, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from birthmark_sma.errors import CallerLeftError
from birthmark_sma.web.logs.request_ids import DIRECT, get_request_id
from birthmark_sma.web.middleware.cancellation import Cancellable
from birthmark_sma.web.middleware.request_metrics import BEGAN, MetricsMiddleware, RequestMetrics
from birthmark_sma.web.middleware.security_headers import (
    ADDED,
    OF_JSON,
    Header,
    ResponseHeaders,
    of_transport,
)
from birthmark_sma.web.problems import error_response
from birthmark_sma.web.transport.protocol import LimitedHttpProtocol
from birthmark_sma.web.transport.write_coalescing import CoalescingTransport

_BODY_BYTES = 4_096
"""Longer bodies take the normal path, which limits the memory that clients can fill."""


class DirectEndpoint(Protocol):
    """An endpoint in two steps, with one future to wait for between them."""

    def begin(self, scope: Scope, body: bytes) -> "asyncio.Future[Any]":
        """Submit a request with its complete body and return the future of its result.

        Raises any error that refuses the request. In this case it must have no side effects,
        because the normal path then calls it again.
        """

    def finish(self, scope: Scope, future: "asyncio.Future[Any]") -> bytes:
        """Return the JSON body of the response with status 200. Raises the future's exception."""


class DirectHttpProtocol(LimitedHttpProtocol):
    """HTTP protocol that uses an application's direct endpoints instead of an ASGI task.

    The application may have a method `direct_endpoint(scope) -> DirectEndpoint | None`. It must
    have the attribute `traffic`, which counts and logs each response.
    """

    _direct: DirectEndpoint | None = None  # endpoint of the request whose body is incomplete

    @property
    def _traffic(self) -> RequestMetrics:
        traffic: RequestMetrics = self.app.traffic
        return traffic

    def _note_refusal(self, status: int) -> None:
        self._traffic.refused(status)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Start the direct endpoint, or the ASGI task if the request has none.

        uvicorn calls this after the request head, or when a pipelined request has its turn.
        """
        endpoint = self._direct_endpoint(cycle, app)
        if endpoint is None:
            LimitedHttpProtocol._start_asgi_task(self, cycle, app)
        elif cycle.more_body:
            self._direct = endpoint
        else:  # the body arrived while the request waited in the pipeline
            self._begin(cycle, endpoint)

    def _direct_endpoint(self, cycle: RequestResponseCycle, app: Any) -> DirectEndpoint | None:
        find = getattr(app, "direct_endpoint", None)
        # "Expect: 100-continue" takes the normal path: ASGI's receive() sends the 100 response.
        if find is None or cycle.waiting_for_100_continue:
            return None
        scope = cast("Scope", cycle.scope)
        for name, value in scope["headers"]:
            if name == b"content-length":
                if value.isdigit() and int(value) <= _BODY_BYTES:
                    endpoint: DirectEndpoint | None = find(scope)
                    return endpoint
                break
        return None

    def on_message_complete(self) -> None:
        """Start the direct endpoint that waited for the body."""
        LimitedHttpProtocol.on_message_complete(self)
        endpoint, self._direct = self._direct, None
        if endpoint is not None and not self.cycle.disconnected and not self._refused:
            self._begin(self.cycle, endpoint)

    def _begin(self, cycle: RequestResponseCycle, endpoint: DirectEndpoint) -> None:
        scope = cast("Scope", cycle.scope)
        scope[BEGAN] = perf_counter_ns()
        self._at_work = scope
        # Log records name this request from here on. A context variable costs ten times as much.
        DIRECT.scope = scope
        try:
            future = endpoint.begin(scope, bytes(cycle.body))
        except Exception:
            # begin() had no side effects. The normal path raises the same error and answers it.
            LimitedHttpProtocol._start_asgi_task(self, cycle, self.app)
        else:
            future.add_done_callback(partial(self._finish, cycle, endpoint))
        finally:
            DIRECT.scope = None

    def _finish(
        self, cycle: RequestResponseCycle, endpoint: DirectEndpoint, future: "asyncio.Future[Any]"
    ) -> None:
        scope = cast("Scope", cycle.scope)
        DIRECT.scope = scope
        try:
            body = endpoint.finish(scope, future)
        except (CallerLeftError, asyncio.CancelledError):
            self._traffic.answered(scope, 0)
            return
        except Exception as error:
            # The request is recorded already, so only its response takes the normal path.
            self._answer_as_usual(cycle, error_response(Request(scope), error))
            return
        finally:
            DIRECT.scope = None
        if cycle.disconnected or self.transport.is_closing():
            self._traffic.answered(scope, 0)
            return
        # ASGI's send() waits for a client that does not read; write_whole() would fill the memory.
        if self.flow.write_paused:
            self._answer_as_usual(cycle, Response(body, media_type="application/json"))
            return
        head = [_head_of_all(cycle.default_headers)]
        for name, value in (*of_transport(scope), *scope.get(ADDED, ())):
            head += (name, b": ", value, b"\r\n")
        head += (b"x-request-id: ", get_request_id(scope).encode(), b"\r\n")
        if not cycle.keep_alive:
            head.append(b"connection: close\r\n")
        head.append(
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        cast("CoalescingTransport", self.transport).write_whole(b"".join(head))
        self._traffic.answered_directly(scope)
        # uvicorn sets these in RequestResponseCycle.send(), which the fast path skips. They must
        # be set before on_response_complete(), which starts the next pipelined request.
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _answer_as_usual(self, cycle: RequestResponseCycle, answer: Response) -> None:
        app = cast("Any", MetricsMiddleware(Cancellable(ResponseHeaders(answer)), self._traffic))
        LimitedHttpProtocol._start_asgi_task(self, cycle, app)


_head: tuple[Sequence[Header], bytes] = ((), b"")  # cache: the headers, and the head made of them


def _head_of_all(headers: Sequence[Header]) -> bytes:
    """Return the status line and the headers that all responses share, from a cache.

    uvicorn makes a new list of default headers each second (Date), so the list's identity is the
    cache key.
    """
    global _head  # noqa: PLW0603
    made_of, head = _head
    if made_of is not headers:
        lines = [b"%b: %b\r\n" % field for field in (*headers, *OF_JSON)]
        head = b"HTTP/1.1 200 OK\r\n" + b"".join(lines)
        _head = (headers, head)
    return head
