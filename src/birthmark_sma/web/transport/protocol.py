"""uvicorn's HTTP protocol with limits on size and time, and with strict parsing.

uvicorn stores heads of any size, waits without a timeout and parses HTTP leniently. It makes one
protocol object for each connection, of a class derived from `LimitedHttpProtocol`, which responds
- 414 to a request line of more than LINE_BYTES,
- 431 to a head of more than HEAD_BYTES or MAX_FIELDS (RFC 6585, section 5),
- 408 to a request that is not complete in time (RFC 9110, section 15.5.9),
- 400, 501 or 505 to a request that a proxy and this server could read differently (request
  smuggling): no Host or several, a transfer coding other than chunked, another HTTP version, a
  fragment in the target.
Each of these errors closes the connection. `web.middleware.request_body` limits the size of bodies.
"""

import asyncio
import re
import sys
from collections.abc import Sized
from typing import Any, cast

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from birthmark_sma.web import problem_lookup
from birthmark_sma.web.problems import Problem
from birthmark_sma.web.request_context import CONTEXT, RequestContext
from birthmark_sma.web.routes import LIVE, READY
from birthmark_sma.web.transport.head_texts import head_without_upgrade, problem_bytes
from birthmark_sma.web.transport.request_task import JoinedResponse, TurnBudget
from birthmark_sma.web.transport.uvicorn_config import REQUEST_SECONDS, BoundedConfig

_PROBES = (LIVE.path, READY.path)  # they go before all other requests
_VERSIONS = frozenset({"1.1", "1.0"})
_LINE_OVERHEAD, _FIELD_OVERHEAD = len("  HTTP/1.1"), len(": \r\n")
_ENDS_OF_LINES = len("\r\n\r\n")  # the CRLF of the request line and the CRLF that ends the head
# A host name or an address as DNS and browsers write it. RFC 3986, section 3.2, also allows
# userinfo, escapes and commas, which two programs may read differently.
_HOST = rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::[0-9]*)?"
_IS_HOST = re.compile(_HOST).fullmatch
_ABSOLUTE = re.compile(rb"https?://(%b)(?=[/?]|$)" % _HOST, re.IGNORECASE)
# After an error response: read and discard for so long, at most so many bytes. See _send_refusal.
_LINGER_SECONDS, _LINGER_BYTES = 1.0, 1_048_576
# A request is cancelled this long after its client closed its sending side, if its method is safe
# (RFC 9110, section 9.2.1). Other requests may change data, so they run to their end.
_SAFE_METHODS = ("GET", "HEAD")
_GONE_SECONDS = 2.0
_STOP_SECONDS = 0.3  # an idle connection stays open so long after a stop signal


class _OneReadAtATime(FlowControl):
    """Flow control that stops reading while requests wait in the pipeline.

    uvicorn resumes reading after each response, and one read can contain hundreds of pipelined
    requests, so one client could fill the memory. The pause cannot block the current request: the
    waiting requests arrived after it, so its body is complete.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Resume reading if no request waits in the pipeline."""
        if not self._pipeline:
            super().resume_reading()


class LimitedHttpProtocol(HttpToolsProtocol):
    """HTTP protocol of one connection that limits the size of heads and the time of requests.

    One timer for each connection checks the times every `_look_seconds`, so a slow request gets 408
    between 1 and 1.5 times `BoundedConfig.request_seconds` after it began. A timer for each request
    costs more (docs/adr/0007). The event loop owns all fields.

    The overridden methods are uvicorn's and the callbacks of httptools. Each one must call the
    method of `HttpToolsProtocol`, unless it refuses the request or its docstring gives a reason.
    """

    _fields_of_refusals = b""  # header lines for each error response; the sandbox adds its mark
    _request_seconds = REQUEST_SECONDS
    _look_seconds = REQUEST_SECONDS / 2
    _refused = False
    _fed: bytes | None = None  # the data that the parser reads now
    _plain_head: bytes | None = None  # head without the Upgrade of the request; see below
    _last_words: bytes | None = None  # error response that waits for earlier responses
    _pending_bytes = 0  # received since the last part of a body or the last complete request
    _field_bytes = 0  # size of request line, header fields and trailer fields
    _head_is_whole = False  # true: fields that arrive now are trailer fields
    _begun: float | None = None  # loop time at which the incomplete request began
    _idle_since: float | None = None  # loop time of the last response, None during a request
    _looking: asyncio.TimerHandle | None = None
    _cycle_at_work: RequestResponseCycle | None = None  # None after `_end_request`
    _task: asyncio.Task[None] | None = None  # the ASGI task of this cycle
    _at_work: Scope | None = None  # the request whose response is not completely sent
    _half_closed = False  # the client has closed its sending side, and may have left
    _turn_budget: TurnBudget | None = None  # shared by all connections
    _stopping = False  # the server stops: the next response ends the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit at once: a connection without any request is slow, too."""
        HttpToolsProtocol.connection_made(self, transport)
        # This replaces the object that uvicorn has just made.
        self.flow = _OneReadAtATime(transport, self.pipeline)
        if isinstance(self.config, BoundedConfig):
            self._request_seconds = self.config.request_seconds
            self._turn_budget = self.config.turn_budget(self.loop)
        self._begun = self.loop.time()
        self._look_seconds = min(self._request_seconds, self.timeout_keep_alive) / 2
        self._looking = self.loop.call_later(self._look_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timer and the current request, because its client has left."""
        if self._looking is not None:
            self._looking.cancel()
        self._answer_is_lost()
        self._end_request()
        HttpToolsProtocol.connection_lost(self, exc)

    def data_received(self, data: bytes) -> None:
        """Parse received data, and refuse a head or trailer that is too large."""
        if self._refused:
            self._linger(len(data))
            return
        if self._begun is None:
            self._begun = self.loop.time()
            self._idle_since = None
        self._pending_bytes += len(data)
        self._fed = data
        HttpToolsProtocol.data_received(self, data)
        self._fed = None
        # The parser's callbacks see complete fields only. This limits a field that never ends.
        if self._pending_bytes > problem_lookup.HEAD_BYTES:
            self._refuse(problem_lookup.HEAD_TOO_LARGE)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep our sending side open (return true) if a complete request has no response yet.

        A client may close its sending side and still read. uvicorn would close the connection.
        """
        if not self._owes_an_answer():
            return None
        self.cycle.keep_alive = False
        self._half_closed = True
        cycle = self._cycle_at_work
        if cycle is not None and self.cycle.scope["method"] in _SAFE_METHODS:
            self.loop.call_later(_GONE_SECONDS, self._end_unanswered, cycle)
        return True

    def shutdown(self) -> None:
        """Close the connection after its response, or after `_STOP_SECONDS` if it is idle.

        A request of a proxy may be on its way. It must not send a POST twice (RFC 9112, 9.3.1).
        """
        self._stopping = True
        delay = 0 if self._owes_an_answer() else _STOP_SECONDS
        self.loop.call_later(delay, HttpToolsProtocol.shutdown, self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Run the application in a task that `_end_request` can cancel (uvicorn keeps none)."""
        # With pipelining, self.scope is the newest request, which is not always the current one.
        self._at_work = cast("Scope", cycle.scope)
        cycle.keep_alive &= not self._stopping
        joined: Any = JoinedResponse(app, cycle)
        task = self.loop.create_task(self._run(cycle, joined))
        self.tasks.add(task)
        self._cycle_at_work, self._task = cycle, task

    async def _run(self, cycle: RequestResponseCycle, app: Any) -> None:
        try:  # a done callback for each task would cost a turn of the loop
            budget = None if cycle.scope["path"] in _PROBES else self._turn_budget
            if budget and (turn := budget.enter(len(cycle.body))):
                await turn
            await cycle.run_asgi(app)
        finally:
            self.tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _end_unanswered(self, cycle: RequestResponseCycle) -> None:
        """Cancel a request of a half-closed connection. Most of these clients have left."""
        if cycle is self._cycle_at_work and not cycle.response_started:
            self._end_request()
            self.transport.close()

    def _end_request(self) -> None:
        cycle, self._cycle_at_work = self._cycle_at_work, None
        if cycle is not None and self._task is not None and not cycle.response_complete:
            context: RequestContext | None = cast("Scope", cycle.scope).get(CONTEXT)
            if context is not None:
                context.caller_left = True
            # Without this, uvicorn logs an error because the task ends without a response.
            cycle.disconnected = True
            self._task.add_done_callback(self.tasks.discard)  # it may not have begun
            self._task.cancel()

    def on_response_complete(self) -> None:
        """Start the next pipelined request, or mark the connection as idle.

        uvicorn's method is replaced, because it sets a keep-alive timer after each response and
        cancels it with the next request. Here `_look` finds idle connections (docs/adr/0007).
        """
        self.server_state.total_requests += 1
        if self._half_closed:  # a client that has closed both directions looks the same
            self._answer_is_lost()
        if not self.flow.write_paused:
            self._at_work = None
        if self.transport.is_closing():
            return
        # Take the next request out first: resume_reading() does nothing while any request waits.
        following = self.pipeline.pop() if self.pipeline else None
        self.flow.resume_reading()
        if following is not None:
            self._start_asgi_task(*following)
        elif self._last_words is not None:
            self._send_refusal(self._last_words)
        else:
            self._idle_since = self.loop.time()

    def on_message_begin(self) -> None:
        """Reset the counters for a new head."""
        self._field_bytes = 0
        self._head_is_whole = False
        HttpToolsProtocol.on_message_begin(self)

    def _answer_is_lost(self) -> None:
        """Report to the validation of the current request that its response cannot be delivered.

        The replay ledger records such answers as lost (docs/adr/0009).
        """
        context: RequestContext | None = (self._at_work or {}).get(CONTEXT)
        if context is not None and context.awaited_answer is not None:
            context.awaited_answer.leave()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of the target before they are stored; refuse a line that is too long."""
        if not self._field_bytes:
            self._field_bytes = len(self.parser.get_method()) + _LINE_OVERHEAD
        self._field_bytes += len(url)
        if self._field_bytes > problem_lookup.LINE_BYTES:
            self._refuse(problem_lookup.TARGET_TOO_LONG)
        else:
            HttpToolsProtocol.on_url(self, url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count header and trailer fields, and store the header fields only.

        Trailer fields, which uvicorn stores, could contradict the head that was authenticated.
        """
        self._field_bytes += len(name) + len(value) + _FIELD_OVERHEAD
        if self._field_bytes > problem_lookup.HEAD_BYTES - _ENDS_OF_LINES:
            self._refuse(problem_lookup.HEAD_TOO_LARGE)
        elif self._head_is_whole:
            return
        elif len(self.headers) >= problem_lookup.MAX_FIELDS:
            self._refuse(problem_lookup.HEAD_TOO_LARGE)
        else:
            # Trailing whitespace is not part of a field value (RFC 9110, section 5.5).
            HttpToolsProtocol.on_header(self, name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Check the complete head, then start the request or refuse it."""
        self._pending_bytes = 0
        self._head_is_whole = True
        if not self._refused:
            refusal = self._check_head()
            if refusal is not None:
                self._refuse(refusal)
            elif not self._passes_over_upgrade():
                HttpToolsProtocol.on_headers_complete(self)

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body, without a size limit."""
        self._pending_bytes = 0
        if not self._refused:
            HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """End the request, and reset size and time for the next one."""
        if self._plain_head is not None:
            return  # the parser stops after the head of an upgrade; the body has not arrived
        if not self._refused:
            HttpToolsProtocol.on_message_complete(self)
        self._pending_bytes = 0
        self._begun = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's signature
        """Send a problem document (RFC 9457) with status 400 in place of uvicorn's plain text."""
        self._refuse(problem_lookup.NOT_HTTP)

    def _unsupported_upgrade_warning(self) -> None:
        """Parse the request again without its Upgrade header. No other protocol is supported.

        A server may ignore Upgrade (RFC 9110, section 7.8), and Java's HTTP client relies on that.
        httptools stops after the head of an upgrade request, so a new parser reads the rewritten
        head and then the rest of the data. The rewritten head has "connection: close", so a client
        cannot make the server do this often on one connection.
        """
        head, self._plain_head = self._plain_head, None
        # uvicorn calls this while it handles HttpParserUpgrade, whose argument is the offset of
        # the first byte after the head.
        offset = getattr(sys.exc_info()[1], "args", (0,))[0]
        if head is not None and self._fed is not None and not self._refused:
            self.parser = httptools.HttpRequestParser(self)
            HttpToolsProtocol.data_received(self, head + self._fed[offset:])

    def _check_head(self) -> Problem | None:
        """Return the error response to an invalid head that the parser accepts, or None.

        The host in an absolute target replaces the Host field (RFC 9112, section 3.2.2), so all
        later code reads the same host and the same path.
        """
        version = self.parser.get_http_version()
        hosts = [value for name, value in self.headers if name == b"host"]
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if version not in _VERSIONS:
            return problem_lookup.HTTP_VERSION
        if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_IS_HOST, hosts)):
            return problem_lookup.NOT_ONE_HOST
        if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
            return problem_lookup.TRANSFER_CODING
        if b"#" in self.url or (codings and version == "1.0"):
            return problem_lookup.NOT_HTTP
        if not self.url.startswith((b"/", b"*")):
            absolute = _ABSOLUTE.match(self.url)
            if absolute is None or not absolute[1]:
                return problem_lookup.NOT_HTTP
            rest = self.url[absolute.end() :]
            self.url = rest if rest.startswith(b"/") else b"/" + rest
            self.headers[:] = [field for field in self.headers if field[0] != b"host"]
            self.headers.append((b"host", absolute[1]))
        return None

    def _passes_over_upgrade(self) -> bool:
        """Return true and store a rewritten head if the request asks for another protocol."""
        if not self.parser.should_upgrade() or self.parser.get_method() == b"CONNECT":
            return False
        version = self.parser.get_http_version().encode()
        line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)
        self._plain_head = head_without_upgrade(line, self.headers)
        return True

    def _look(self) -> None:
        now = self.loop.time()
        if self._begun is not None and now - self._begun > self._request_seconds:
            self._refuse(problem_lookup.REQUEST_TIMEOUT)
        elif self._idle_since is not None and now - self._idle_since > self.timeout_keep_alive:
            self.transport.close()
        elif not self.transport.is_closing():
            self._looking = self.loop.call_later(self._look_seconds, self._look)

    def _refuse(self, refusal: Problem) -> None:
        """Send an error response after the responses to earlier requests, then close."""
        if self._refused:
            return
        self._refused = True
        answer = problem_bytes(refusal, self._fields_of_refusals)
        if hasattr(self.app, "metrics"):  # the application of a test may have none
            self.app.metrics.refused(refusal.status)
        if self.cycle and self.cycle.more_body and self.pipeline:
            self.pipeline.popleft()  # the refused request: it is the newest, and has not started
            owing = True
        else:
            owing = self._owes_an_answer()
        if owing:
            self._last_words = answer
        else:
            self._send_refusal(answer)

    def _send_refusal(self, answer: bytes) -> None:
        """Send an error response, and close the connection after `_LINGER_SECONDS`.

        If a socket is closed while the client still sends, TCP resets the connection, and the
        client may lose the response. So this reads and discards data before it closes.
        """
        if self.transport.is_closing():
            return
        if self.cycle and not self.cycle.response_complete:  # it must not write after the error
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(answer)
        if self.scheme == "https":  # asyncio cannot half-close TLS
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._pending_bytes = 0
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _linger(self, size: int) -> None:
        """Discard data after an error response; close after `_LINGER_BYTES`."""
        self._pending_bytes += size
        if self._pending_bytes > _LINGER_BYTES:
            self.transport.close()

    def _owes_an_answer(self) -> bool:
        """Return true if a complete request has no complete response yet."""
        if not self.cycle:
            return False
        if self._last_words is not None:
            return True
        return bool(self.pipeline) if self.cycle.more_body else not self.cycle.response_complete
