"""uvicorn's HTTP protocol, with bounds on what a request may take up before it is whole.

uvicorn's own, made for speed, stores heads of any size, waits for ever and reads HTTP generously.
Here a request line of more than LINE_BYTES is answered 414, a head of more than HEAD_BYTES or
MAX_FIELDS 431 (RFC 6585, section 5), and a request that is not whole in time 408 (RFC 9110, section
15.5.9). What two programs could read differently is refused: no Host or two, transfer codings,
other versions, a fragment in the target. Trailer fields are dropped. After a refusal the connection
is closed.
"""

import asyncio
import json
import re
import sys
from collections.abc import Sized
from typing import Any, NamedTuple, cast

import httptools
import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from birthmark_sma.runtime.log_context import UNANSWERED
from birthmark_sma.web.logs.request_ids import new_id
from birthmark_sma.web.middleware.cancellation import CALLER_LEFT
from birthmark_sma.web.middleware.security_headers import EVERYWHERE, OF_JSON
from birthmark_sma.web.transport.proxy_headers import TrustedProxies
from birthmark_sma.web.transport.write_coalescing import CoalescingTransport

LINE_BYTES = 8_192
HEAD_BYTES = 16_384
MAX_FIELDS = 100
REQUEST_SECONDS = 30.0


class _Refusal(NamedTuple):
    """What is said to a sender of whom no whole request came."""

    status: int
    title: str
    slug: str
    detail: str

    def answer(self, more_fields: bytes = b"") -> bytes:
        """Return the answer, under a name of its own, with whole header fields besides."""
        request_id = new_id()
        body = json.dumps(
            {
                "type": f"urn:birthmark:problem:{self.slug}",
                "title": self.title,
                "status": self.status,
                "detail": self.detail,
                "instance": "about:blank",
                "request_id": request_id,
            }
        ).encode()
        return b"".join(
            (
                b"HTTP/1.1 %d %b\r\n" % (self.status, self.title.encode()),
                b"Content-Type: application/problem+json\r\n",
                b"X-Request-ID: %b\r\n" % request_id.encode(),
                _FOR_BROWSERS,
                more_fields,
                b"Content-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body),
            )
        )


_FOR_BROWSERS = b"".join(
    [f"{name}: {value}\r\n".encode() for name, value in EVERYWHERE]
    + [b"%b: %b\r\n" % field for field in OF_JSON]
)


_HEAD_TOO_LARGE = _Refusal(
    431,
    "Request Header Fields Too Large",
    "head-too-large",
    f"A head has at most {HEAD_BYTES} bytes and {MAX_FIELDS} fields. Send fewer or shorter ones.",
)
_LINE_TOO_LONG = _Refusal(
    414,
    "URI Too Long",
    "target-too-long",
    f"A request line has at most {LINE_BYTES} bytes. Shorten the query.",
)
_TOO_SLOW = _Refusal(
    408,
    "Request Timeout",
    "request-timeout",
    "The request did not arrive whole in time. Send it at once, or on a faster connection.",
)


_NOT_HTTP = _Refusal(400, "Bad Request", "not-http", "This is not HTTP/1.1 as RFC 9112 has it.")
_BAD_HOST = _Refusal(
    400,
    "Bad Request",
    "not-one-host",
    "HTTP/1.1 wants one Host field with a name or an address, and perhaps a port (RFC 9112, section"
    " 3.2). Send exactly one.",
)
_CODED = _Refusal(
    501,
    "Not Implemented",
    "transfer-coding",
    "No transfer coding but chunked is known here. Send a Content-Length, or Transfer-Encoding:"
    " chunked alone.",
)
_OTHER_VERSION = _Refusal(
    505, "HTTP Version Not Supported", "http-version", "Speak HTTP/1.1 or HTTP/1.0 here."
)

_VERSIONS = frozenset({"1.1", "1.0"})
_LINE_OVERHEAD = len("  HTTP/1.1")
_FIELD_OVERHEAD = len(": \r\n")
_ENDS_OF_LINES = len("\r\n\r\n")  # of the request line and of the head
# A name or an address as DNS and browsers write them. RFC 3986, section 3.2, allows more: userinfo,
# escapes and commas, which programs read differently.
_HOST = rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::[0-9]*)?"
_IS_HOST = re.compile(_HOST).fullmatch
_ABSOLUTE = re.compile(rb"https?://(%b)(?=[/?]|$)" % _HOST, re.IGNORECASE)
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 1_048_576


_SAFE_METHODS = ("GET", "HEAD")
_GONE_SECONDS = 2.0
_OF_THIS_CONNECTION = (b"connection", b"upgrade", b"http2-settings")


class _OneReadAtATime(FlowControl):
    """Reads nothing more while requests wait in the pipeline.

    uvicorn reads on with each answer, and so lets in hundreds of requests for each that it answers:
    one sender would fill the memory. While requests wait nothing is missing of the one that is
    being answered, as they came after it.
    """

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Read on, if nothing waits."""
        if not self._pipeline:
            super().resume_reading()


class _Answering(NamedTuple):
    """A request, and the task that answers it."""

    cycle: RequestResponseCycle
    task: asyncio.Task[None]


class BoundedConfig(uvicorn.Config):
    """uvicorn's settings, and what the protocols here need beside them."""

    request_seconds = REQUEST_SECONDS
    trusted_proxies: TrustedProxies | None = None


class LimitedHttpProtocol(HttpToolsProtocol):
    """Counts what arrives of a head, and looks now and then whether a request drags on.

    A request must be whole `BoundedConfig.request_seconds` after it began, or half as long again.
    """

    _fields_of_refusals = b""
    _request_seconds = REQUEST_SECONDS
    _look_seconds = REQUEST_SECONDS / 2
    _refused = False
    _fed: bytes | None = None  # what the parser is reading
    _plain_head: bytes | None = None  # of a request that asks for another protocol
    _last_words: bytes | None = None  # a refusal that waits for the answers to earlier requests
    _pending_bytes = 0  # what arrived since the last part of a body, or the last whole request
    _field_bytes = 0  # of request line, header and trailer fields
    _head_is_whole = False  # fields that come now are trailers
    _begun: float | None = None  # when the request that is not whole yet began
    _idle_since: float | None = None  # the last answer, until the next request
    _looking: asyncio.TimerHandle | None = None
    _answering: _Answering | None = None
    _at_work: Scope | None = None  # the request whose answer is not sent yet, or not whole
    _half_closed = False  # the sender will send nothing more, and may be gone

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request at once: who connects and says nothing is slow as well."""
        HttpToolsProtocol.connection_made(self, transport)
        self.flow = _OneReadAtATime(transport, self.pipeline)
        self.transport = CoalescingTransport(transport, self.loop)  # type: ignore[assignment]
        self._request_seconds = (
            self.config.request_seconds
            if isinstance(self.config, BoundedConfig)
            else REQUEST_SECONDS
        )
        self._begun = self.loop.time()
        self._look_seconds = min(self._request_seconds, self.timeout_keep_alive) / 2
        self._looking = self.loop.call_later(self._look_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking, and end the request under way: nobody is there for its answer."""
        if self._looking is not None:
            self._looking.cancel()
        self._answer_is_lost()
        self._end_request()
        HttpToolsProtocol.connection_lost(self, exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, and refuse a head or trailer that goes on for too long."""
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
        if self._pending_bytes > HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer what came whole, also to a client that has sent all that it will.

        TCP lets it close its half and read on; uvicorn would close the other half at once.
        """
        if not self._owes_an_answer():
            return None
        self.cycle.keep_alive = False
        self._half_closed = True
        if self._answering is not None and self.cycle.scope["method"] in _SAFE_METHODS:
            self.loop.call_later(_GONE_SECONDS, self._end_unanswered, self._answering)
        return True

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Answer in a task, which ends when the caller leaves.

        In a pipeline the request at work is not the newest one.
        """
        self._at_work = cast("Scope", cycle.scope)
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        self._answering = _Answering(cycle, task)

    def _end_unanswered(self, answering: _Answering) -> None:
        """End a request of a client that has closed its half, and has heard nothing since.

        Most such clients are gone, which TCP does not tell until something is sent to them.
        """
        if answering is self._answering and not answering.cycle.response_started:
            self._end_request()
            self.transport.close()

    def _end_request(self) -> None:
        answering, self._answering = self._answering, None
        if answering is not None and not answering.cycle.response_complete:
            cast("Scope", answering.cycle.scope)[CALLER_LEFT] = True
            answering.cycle.disconnected = True  # or uvicorn calls it a fault that none is sent
            answering.task.cancel()

    def on_response_complete(self) -> None:
        """Go on with what waits in the pipeline, or count as idle.

        uvicorn sets a timer after each response and cancels it with the next request. Here a
        connection that has been idle for long is found by the look at it.
        """
        self.server_state.total_requests += 1
        if self._half_closed:  # whoever has closed both ways looks the same from here
            self._answer_is_lost()
        if not self.flow.write_paused:
            self._at_work = None
        if self.transport.is_closing():
            return
        following = self.pipeline.pop() if self.pipeline else None
        self.flow.resume_reading()
        if following is not None:
            self._start_asgi_task(*following)
        elif self._last_words is not None:
            self._send_refusal(self._last_words)
        else:
            self._idle_since = self.loop.time()

    def on_message_begin(self) -> None:
        """Expect a head, of which nothing was counted yet."""
        self._field_bytes = 0
        self._head_is_whole = False
        HttpToolsProtocol.on_message_begin(self)

    def _answer_is_lost(self) -> None:
        """Tell whoever is to answer the request at work, or has, that nobody gets the answer."""
        waiting = None if self._at_work is None else self._at_work.get(UNANSWERED)
        if waiting is not None:
            waiting.leave()

    def on_url(self, url: bytes) -> None:
        """Count, before it is stored."""
        if not self._field_bytes:
            self._field_bytes = len(self.parser.get_method()) + _LINE_OVERHEAD
        self._field_bytes += len(url)
        if self._field_bytes > LINE_BYTES:
            self._refuse(_LINE_TOO_LONG)
        else:
            HttpToolsProtocol.on_url(self, url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count header and trailer fields alike, and store the header fields.

        A trailer is no part of the head: anything in it could contradict what was let in by that.
        """
        self._field_bytes += len(name) + len(value) + _FIELD_OVERHEAD
        if self._field_bytes > HEAD_BYTES - _ENDS_OF_LINES:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._head_is_whole:
            return
        elif len(self.headers) >= MAX_FIELDS:
            self._refuse(_HEAD_TOO_LARGE)
        else:
            HttpToolsProtocol.on_header(self, name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Let the body come: its size is its reader's to bound."""
        self._pending_bytes = 0
        self._head_is_whole = True
        if not self._refused:
            refusal = self._check_head()
            if refusal is not None:
                self._refuse(refusal)
            elif not self._passes_over_upgrade():
                HttpToolsProtocol.on_headers_complete(self)

    def on_body(self, body: bytes) -> None:
        """Hand on a part of the body."""
        self._pending_bytes = 0
        if not self._refused:
            HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """Expect the next head, of which nothing was counted yet."""
        if self._plain_head is not None:
            return  # the parser stops at the end of this head; the body is still to come
        if not self._refused:
            HttpToolsProtocol.on_message_complete(self)
        self._pending_bytes = 0
        self._begun = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  the words are our own
        """Answer what is not HTTP with a problem document, as everything else."""
        self._refuse(_NOT_HTTP)

    def _unsupported_upgrade_warning(self) -> None:
        """Read the request as if nobody had asked for another protocol: there is none here.

        A server may pass over the wish (RFC 9110, section 7.8), and Java's client relies on it. The
        parser ends where the head does: another one reads the head without the wish, and goes on.
        The connection is closed after the answer, so a sender gains nothing by asking often.
        """
        head, self._plain_head = self._plain_head, None
        offset = getattr(sys.exc_info()[1], "args", (0,))[0]
        if head is not None and self._fed is not None and not self._refused:
            self.parser = httptools.HttpRequestParser(self)
            HttpToolsProtocol.data_received(self, head + self._fed[offset:])

    def _check_head(self) -> _Refusal | None:
        """Return the refusal of a head that the parser accepts, if it has a fault.

        The host in an absolute target takes the place of Host (RFC 9112, section 3.2.2), so that
        all that follows reads one host and one path.
        """
        version = self.parser.get_http_version()
        hosts = [value for name, value in self.headers if name == b"host"]
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if version not in _VERSIONS:
            return _OTHER_VERSION
        if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_IS_HOST, hosts)):
            return _BAD_HOST
        if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
            return _CODED
        if b"#" in self.url or (codings and version == "1.0"):
            return _NOT_HTTP
        if not self.url.startswith((b"/", b"*")):
            absolute = _ABSOLUTE.match(self.url)
            if absolute is None or not absolute[1]:
                return _NOT_HTTP
            rest = self.url[absolute.end() :]
            self.url = rest if rest.startswith(b"/") else b"/" + rest
            self.headers[:] = [field for field in self.headers if field[0] != b"host"]
            self.headers.append((b"host", absolute[1]))
        return None

    def _passes_over_upgrade(self) -> bool:
        """Write the head anew, where it asks for another protocol."""
        if not self.parser.should_upgrade() or self.parser.get_method() == b"CONNECT":
            return False
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [
            b"%b: %b" % field for field in self.headers if field[0] not in _OF_THIS_CONNECTION
        ]
        self._plain_head = b"\r\n".join([*lines, b"connection: close", b"", b""])
        return True

    def _look(self) -> None:
        now = self.loop.time()
        if self._begun is not None and now - self._begun > self._request_seconds:
            self._refuse(_TOO_SLOW)
        elif self._idle_since is not None and now - self._idle_since > self.timeout_keep_alive:
            self.transport.close()
        elif not self.transport.is_closing():
            self._looking = self.loop.call_later(self._look_seconds, self._look)

    def _refuse(self, refusal: _Refusal) -> None:
        """Say what is wrong and close, after the answers to the requests that came before."""
        if self._refused:
            return
        self._refused = True
        answer = refusal.answer(self._fields_of_refusals)
        self._note_refusal(refusal.status)
        if self.cycle and self.cycle.more_body and self.pipeline:
            self.pipeline.popleft()  # it is this one that is refused, and not begun yet
            owing = True
        else:
            owing = self._owes_an_answer()
        if owing:
            self._last_words = answer
        else:
            self._send_refusal(answer)

    def _send_refusal(self, answer: bytes) -> None:
        """Send a refusal, and read on for a moment before the connection is closed.

        To close while the sender still sends makes TCP reset the connection, and the sender may
        never read why.
        """
        if self.transport.is_closing():
            return
        if self.cycle and not self.cycle.response_complete:  # nothing may follow the refusal
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(answer)
        if self.scheme == "https":  # TLS cannot be closed on one side alone here
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._pending_bytes = 0
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _linger(self, size: int) -> None:
        """Pass over what comes after a refusal, up to a bound."""
        self._pending_bytes += size
        if self._pending_bytes > _LINGER_BYTES:
            self.transport.close()

    def _note_refusal(self, status: int) -> None:
        """Called with each refusal, for whoever counts them."""

    def _owes_an_answer(self) -> bool:
        """Say whether a request that came whole is not answered yet."""
        if not self.cycle:
            return False
        if self._last_words is not None:
            return True
        if self.cycle.more_body:
            return bool(self.pipeline)
        return not self.cycle.response_complete
