"""Export OpenTelemetry traces of requests to a collector (the extra `traces`).

`web.server` imports this module only if SMA_TRACES_URL is set. A request is a span. A validation
has five spans inside: parse, wait, open, settle and commit. With a shared rate limit store it has a
sixth: limit. Open, settle and commit happen to a whole batch at once. The batch is a span in a
trace of its own: the three spans link to it, and it links to its requests.

A span must never contain any part of a token, a key or a body, or the caller.
"""

import logging
import os
import threading
from collections.abc import Sequence
from time import perf_counter_ns, time_ns
from typing import Any

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from birthmark_sma import __version__
from birthmark_sma.authority.validation.records import Steps
from birthmark_sma.storage.group_commit import Batch
from birthmark_sma.web.request_context import RequestContext
from birthmark_sma.web.routes import UNKNOWN

_NAME = "birthmark-sma"
_ITEMS = "sma.batch.items"
_CLOSE_SECONDS = 2.0
_STATE_BYTES = 512
"""The longest tracestate that is accepted from a sender, as every span keeps it. W3C Trace Context,
section 3.3.1.5, requires at least 512 characters of those that propagate it."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_SILENCED = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "urllib3.connectionpool",
)
"""Loggers that would report again and again that the collector is away. `_TellingExporter` reports
it once."""

_log = logging.getLogger(__name__)


class Tracing:
    """Makes spans, and sends them to the collector from a background thread.

    `url` is that of a collector for OTLP over HTTP. OpenTelemetry's own environment variables
    configure the rest: OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME and so
    on.
    """

    def __init__(self, url: str) -> None:
        for name in _SILENCED:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        # One processor for both tracers: it has the queue and the thread.
        self._processor = BatchSpanProcessor(_TellingExporter(url))
        self._requests = self._tracer()
        # `note_batch` makes a span only for a batch with a sampled request, so it needs no sampler.
        self._batches = self._tracer(sampler=ALWAYS_ON)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, context: RequestContext) -> None:
        """Begin the trace of a request, unless its route is not traced.

        The span becomes a child of the sender's span if the request has a valid traceparent.
        """
        if not context.route.traced:
            return
        # Times are measured with the monotonic clock. Spans need the time of day.
        offset = time_ns() - perf_counter_ns()
        route = context.route.path
        method = context.method if context.method in _METHODS else "_OTHER"
        attributes = {"http.request.method": method, "sma.request_id": context.request_id}
        if route != UNKNOWN.path:
            attributes["http.route"] = route
        span = self._requests.start_span(
            method if route == UNKNOWN.path else f"{method} {route}",
            context=self._sender_of(context),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=context.began + offset,
        )
        context.trace = RequestTrace(self._requests, span, offset)

    def note_batch(self, batch: Batch, steps: Steps) -> None:
        """Make the span of a batch, and record its steps in the traces of its requests.

        The writer thread calls this after the commit and before the responses leave.
        """
        traces: list[RequestTrace] = [
            trace
            for request in batch.requests()
            if isinstance(trace := getattr(request, "trace", None), RequestTrace)
            and trace.span.is_recording()
        ]
        if not traces:
            return
        offset = traces[0].offset
        span = self._batches.start_span(
            "batch",
            context=Context(),
            attributes={_ITEMS: batch.items},
            links=[Link(trace.span.get_span_context()) for trace in traces],
            start_time=batch.began + offset,
        )
        span.end(steps.committed + offset)
        for trace in traces:
            trace.settled(batch, steps, span.get_span_context())

    def close(self) -> None:
        """Send the spans that wait, for up to 2 seconds. The others are lost."""
        # In a daemon thread, so that a collector that hangs does not delay the end of the process.
        sending = threading.Thread(target=self._processor.shutdown, daemon=True)
        sending.start()
        sending.join(_CLOSE_SECONDS)

    def _tracer(self, **options: Any) -> Tracer:
        # `close` shuts the processor down, with a time limit, in place of the SDK's atexit handler.
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False, **options)
        provider.add_span_processor(self._processor)
        return provider.get_tracer(_NAME, __version__)

    def _sender_of(self, context: RequestContext) -> Context:
        """Return the sender's trace context (W3C Trace Context), or an empty one.

        It is empty unless there is exactly one traceparent. A tracestate that is too long is left
        out.
        """
        parents = context.header_values(b"traceparent")
        if len(parents) != 1:
            return Context()
        states = b",".join(context.header_values(b"tracestate"))
        carrier = {"traceparent": parents[0].decode("latin-1")}
        if 0 < len(states) <= _STATE_BYTES:
            carrier["tracestate"] = states.decode("latin-1")
        return self._propagator.extract(carrier, Context())


class RequestTrace:
    """The span of one request and the times of its steps.

    The steps become spans when the request is answered. The event loop calls the methods, except
    `settled`, which the writer thread calls.
    """

    __slots__ = (
        "_batch",
        "_context",
        "_items",
        "_offered",
        "_parsed",
        "_parsing",
        "_steps",
        "_tracer",
        "offset",
        "span",
    )

    def __init__(self, tracer: Tracer, span: Span, offset: int) -> None:
        self._tracer = tracer
        self.span = span
        self.offset = offset
        """The nanoseconds to add to `perf_counter_ns` for the time of day."""
        self._context = set_span_in_context(span, Context())
        self._parsing = self._parsed = self._offered = self._items = 0
        self._steps: Steps | None = None
        self._batch: SpanContext | None = None

    def parsing(self) -> None:
        """Record that the body is complete and parsing begins."""
        self._parsing = perf_counter_ns()

    def parsed(self) -> None:
        """Record that parsing has ended and the query of the shared rate limit store begins."""
        self._parsed = perf_counter_ns()

    def offered(self) -> None:
        """Record that the request is handed to the validator and waits for the writer."""
        self._offered = perf_counter_ns()

    def settled(self, batch: Batch, steps: Steps, span: SpanContext) -> None:
        """Record the steps of the batch, which is durable now, and the batch's span."""
        self._items, self._steps, self._batch = batch.items, steps, span

    def end(self, status: int) -> None:
        """Make the spans of the steps and end the request's span. Never raises an exception.

        Status 0 means that the caller left before the response.
        """
        try:
            if self.span.is_recording():
                now = perf_counter_ns()
                self._add_steps(now)
                if status:
                    self.span.set_attribute("http.response.status_code", status)
                if not status or status >= 500:
                    self.span.set_attribute("error.type", str(status) if status else "left")
                    self.span.set_status(Status(StatusCode.ERROR))
                self.span.end(now + self.offset)
        except Exception:  # a fault in tracing must not make the request fail
            _log.exception("a trace could not be made")

    def _add_steps(self, now: int) -> None:
        if not self._parsing:
            return
        # Without a shared store there is no `_parsed`. A time of 0 was never reached.
        parsed = self._parsed or self._offered
        self._add("parse", self._parsing, parsed or now, failed=not parsed)
        if self._parsed:
            self._add("limit", self._parsed, self._offered or now, failed=not self._offered)
        if not self._offered:
            return
        steps = self._steps
        if steps is None:
            self._add("wait", self._offered, now, failed=True)
            return
        self._add("wait", self._offered, steps.begun)
        self._add_shared("open", steps.begun, steps.opened)
        self._add_shared("settle", steps.opened, steps.settled)
        self._add_shared("commit", steps.settled, steps.committed)

    def _add(self, name: str, began: int, ended: int, *, failed: bool = False) -> None:
        span = self._tracer.start_span(name, self._context, start_time=began + self.offset)
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended + self.offset)

    def _add_shared(self, name: str, began: int, ended: int) -> None:
        """Add the span of a step of the whole batch, with a link to the batch's span."""
        assert self._batch is not None  # noqa: S101  set together with the steps
        span = self._tracer.start_span(
            name,
            self._context,
            attributes={_ITEMS: self._items},
            links=[Link(self._batch)],
            start_time=began + self.offset,
        )
        span.end(ended + self.offset)


class _TellingExporter(SpanExporter):
    """OpenTelemetry's exporter, which logs once that the collector fails, and once that it is back.

    The batch processor calls it from its own thread.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._status: int | None = None  # of the last answer
        session = requests.Session()
        session.hooks["response"].append(self._note_status)
        self._exporter: SpanExporter = OTLPSpanExporter(endpoint=url, session=session)
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans to the collector. Spans that cannot be sent are lost."""
        self._status = None
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._failing:
                _log.warning("the collector of traces takes them again")
            self._failing = False
        elif not self._failing:
            self._failing = True
            what = "does not answer" if self._status is None else f"answers {self._status}"
            _log.warning(
                "the collector of traces at %s %s: traces are lost until it takes them again,"
                " and requests are answered all the same",
                self._url,
                what,
            )
        return result

    def shutdown(self) -> None:
        """Close the connections to the collector."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the wrapped exporter. It holds no spans back, so this returns at once."""
        return self._exporter.force_flush(timeout_millis)

    def _note_status(self, response: requests.Response, *_: Any, **__: Any) -> None:
        self._status = response.status_code


def _resource() -> Resource:
    found = Resource.create({SERVICE_VERSION: __version__, "process.pid": os.getpid()})
    # The SDK's default name. With OTEL_SERVICE_NAME the operator's name stays.
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        found = found.merge(Resource({SERVICE_NAME: _NAME}))
    return found
