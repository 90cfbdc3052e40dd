"""Answer a request from the HTTP protocol itself, where nothing but one future is waited for.

A task, its coroutines and the messages of ASGI cost more than judging a camera token. An endpoint
in two halves needs none of them: it begins when the body is there, and finishes when its future is
done. Whatever is out of the ordinary (large bodies, errors) goes the ordinary way through ASGI,
with the same two halves, so the answers are the same.
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
"""A longer body goes the ordinary way, which keeps senders from filling the memory."""


class DirectEndpoint(Protocol):
    """An endpoint in two halves, with a wait between them."""

    def begin(self, scope: Scope, body: bytes) -> "asyncio.Future[Any]":
        """Take a request in. Raises what refuses it; then nothing has happened."""

    def finish(self, scope: Scope, future: "asyncio.Future[Any]") -> bytes:
        """Return the JSON of the answer, status 200. Raises what the future raised."""


class DirectHttpProtocol(LimitedHttpProtocol):
    """Asks the application for a direct endpoint before a task is made for it.

    An application that has some has a method `direct_endpoint(scope) -> DirectEndpoint | None`, and
    `traffic`, which is told of each answer.
    """

    _direct: DirectEndpoint | None = None  # of the cycle whose body is awaited

    @property
    def _traffic(self) -> RequestMetrics:
        traffic: RequestMetrics = self.app.traffic
        return traffic

    def _note_refusal(self, status: int) -> None:
        self._traffic.refused(status)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Called once the head is there."""
        endpoint = self._direct_endpoint(cycle, app)
        if endpoint is None:
            LimitedHttpProtocol._start_asgi_task(self, cycle, app)
        elif cycle.more_body:
            self._direct = endpoint
        else:  # it waited in the pipeline, and its body came meanwhile
            self._begin(cycle, endpoint)

    def _direct_endpoint(self, cycle: RequestResponseCycle, app: Any) -> DirectEndpoint | None:
        find = getattr(app, "direct_endpoint", None)
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
        """Begin, if that is what the body was awaited for."""
        LimitedHttpProtocol.on_message_complete(self)
        endpoint, self._direct = self._direct, None
        if endpoint is not None and not self.cycle.disconnected and not self._refused:
            self._begin(self.cycle, endpoint)

    def _begin(self, cycle: RequestResponseCycle, endpoint: DirectEndpoint) -> None:
        scope = cast("Scope", cycle.scope)
        scope[BEGAN] = perf_counter_ns()
        self._at_work = scope
        DIRECT.scope = scope
        try:
            future = endpoint.begin(scope, bytes(cycle.body))
        except Exception:
            # Nothing has happened yet: the ordinary way meets the same error, and answers it.
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
            self._answer_as_usual(cycle, error_response(Request(scope), error))
            return
        finally:
            DIRECT.scope = None
        if cycle.disconnected or self.transport.is_closing():
            self._traffic.answered(scope, 0)
            return
        if self.flow.write_paused:  # a client that does not read waits, and fills no memory
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
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _answer_as_usual(self, cycle: RequestResponseCycle, answer: Response) -> None:
        app = cast("Any", MetricsMiddleware(Cancellable(ResponseHeaders(answer)), self._traffic))
        LimitedHttpProtocol._start_asgi_task(self, cycle, app)


_head: tuple[Sequence[Header], bytes] = ((), b"")


def _head_of_all(headers: Sequence[Header]) -> bytes:
    """Return what every answer begins with. uvicorn makes these headers anew each second."""
    global _head  # noqa: PLW0603
    made_of, head = _head
    if made_of is not headers:
        lines = [b"%b: %b\r\n" % field for field in (*headers, *OF_JSON)]
        head = b"HTTP/1.1 200 OK\r\n" + b"".join(lines)
        _head = (headers, head)
    return head
