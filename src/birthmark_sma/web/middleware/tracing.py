"""OpenTelemetry traces: what became of a request, for whoever collects them (the extra `traces`).

Only `sma serve` with SMA_TRACES_URL imports this. A request is a span; a validation has five more
inside: parse, wait, open, settle and commit. The last three happen to a whole batch at once, which
is a span in a trace of its own: each of the three links there, and it to the requests it served.

No span holds anything of a token, a key or a body, or who asked.
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
from starlette.types import Scope

from birthmark_sma import __version__
from birthmark_sma.authority.validation.service import Steps
from birthmark_sma.storage.group_commit import Batch
from birthmark_sma.web.logs.request_ids import get_request_id
from birthmark_sma.web.middleware.authentication import UNKNOWN, route_name
from birthmark_sma.web.middleware.request_metrics import BEGAN, TRACE

_NAME = "birthmark-sma"
_ITEMS = "sma.batch.items"
_CLOSE_SECONDS = 2.0
_STATE_BYTES = 512
"""Of a sender's tracestate, which every span keeps; W3C Trace Context, section 3.3.1.5, has those
that propagate it keep as much at least."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_NOT_TRACED = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds by machines: nobody looks for these."""

_SILENCED = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",
    "urllib3.connectionpool",
)
"""They would say again and again that the collector is away, which is said here once."""

_log = logging.getLogger(__name__)


class Tracing:
    """Makes spans and sends them, from a thread of its own.

    The URL is where a collector takes OTLP over HTTP. Everything else is as OpenTelemetry's own
    variables say: OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME and others.
    """

    def __init__(self, url: str) -> None:
        for name in _SILENCED:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._processor = BatchSpanProcessor(_TellingExporter(url))
        self._requests = self._tracer()
        self._batches = self._tracer(sampler=ALWAYS_ON)  # those of requests that were sampled
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, scope: Scope) -> None:
        """Begin the trace of a request, unless that was done, below the sender's if it has one."""
        route = route_name(scope)
        if TRACE in scope or route in _NOT_TRACED:
            return
        offset = time_ns() - perf_counter_ns()
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        attributes = {"http.request.method": method, "sma.request_id": get_request_id(scope)}
        if route != UNKNOWN:
            attributes["http.route"] = route
        span = self._requests.start_span(
            method if route == UNKNOWN else f"{method} {route}",
            context=self._sender_of(scope),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=scope[BEGAN] + offset,
        )
        scope[TRACE] = RequestTrace(self._requests, span, offset)

    def note_batch(self, batch: Batch, steps: Steps) -> None:
        """Make the span of a batch, in the writer thread, and tell the requests in it."""
        traces: list[RequestTrace] = [
            trace
            for origin in batch.origins()
            if (trace := origin.get(TRACE)) is not None and trace.span.is_recording()
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
        """Send what waits, for two seconds at most."""
        sending = threading.Thread(target=self._processor.shutdown, daemon=True)
        sending.start()
        sending.join(_CLOSE_SECONDS)

    def _tracer(self, **options: Any) -> Tracer:
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False, **options)
        provider.add_span_processor(self._processor)
        return provider.get_tracer(_NAME, __version__)

    def _sender_of(self, scope: Scope) -> Context:
        """Return what the sender says of its own trace (W3C Trace Context), if it says it once."""
        parents = [value for name, value in scope["headers"] if name == b"traceparent"]
        if len(parents) != 1:
            return Context()
        states = b",".join(value for name, value in scope["headers"] if name == b"tracestate")
        carrier = {"traceparent": parents[0].decode("latin-1")}
        if 0 < len(states) <= _STATE_BYTES:
            carrier["tracestate"] = states.decode("latin-1")
        return self._propagator.extract(carrier, Context())


class RequestTrace:
    """The span of one request and the moments of it, which become spans when it is answered."""

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
        """What makes a time of day of `perf_counter_ns`."""
        self._context = set_span_in_context(span, Context())
        self._parsing = self._parsed = self._offered = self._items = 0
        self._steps: Steps | None = None
        self._batch: SpanContext | None = None

    def parsing(self) -> None:
        """The body is there, and looked at."""
        self._parsing = perf_counter_ns()

    def parsed(self) -> None:
        """What the body holds is known, and other processes are asked for its rate limit."""
        self._parsed = perf_counter_ns()

    def offered(self) -> None:
        """From now on it waits for the writer."""
        self._offered = perf_counter_ns()

    def settled(self, batch: Batch, steps: Steps, span: SpanContext) -> None:
        """Its batch is durable."""
        self._items, self._steps, self._batch = batch.items, steps, span

    def end(self, status: int) -> None:
        """Make the spans; status 0 says that the sender left before its answer."""
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
        except Exception:  # the answer is more than its trace
            _log.exception("a trace could not be made")

    def _add_steps(self, now: int) -> None:
        if not self._parsing:
            return
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
        """Add what happened to the whole batch of this request."""
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
    """OpenTelemetry's exporter, which says once that the collector does not take what it gets."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._status: int | None = None  # of the last answer
        session = requests.Session()
        session.hooks["response"].append(self._note_status)
        self._exporter: SpanExporter = OTLPSpanExporter(endpoint=url, session=session)
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send. Spans that cannot be sent are lost."""
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
        """Let go of connections."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back here."""
        return self._exporter.force_flush(timeout_millis)

    def _note_status(self, response: requests.Response, *_: Any, **__: Any) -> None:
        self._status = response.status_code


def _resource() -> Resource:
    found = Resource.create({SERVICE_VERSION: __version__, "process.pid": os.getpid()})
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):  # nobody named it
        found = found.merge(Resource({SERVICE_NAME: _NAME}))
    return found
