"""An OpenTelemetry collector for tests: it receives OTLP over HTTP and keeps the spans."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class CollectedSpan:
    """A received span. Ids are hex, times are nanoseconds since 1970."""

    name: str
    trace: str
    span: str
    parent: str
    began: int
    ended: int
    attributes: dict[str, Any]
    links: list[str]
    failed: bool
    service: str


@dataclass
class Collector:
    """The received spans and bodies. `status` is the status of the next response."""

    port: int = 0
    status: int = 200
    spans: list[CollectedSpan] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The URL of the collector."""
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> list[CollectedSpan]:
        """Return all spans with a name."""
        return [span for span in list(self.spans) if span.name == name]

    def below(self, parent: CollectedSpan) -> dict[str, CollectedSpan]:
        """Return the direct children of a span, by name."""
        return {span.name: span for span in list(self.spans) if span.parent == parent.span}


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """Run a collector until the end of the block, on `port` or on a free port."""
    collector = Collector()

    class _Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.status == 200:
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                collector.bodies.append(body)
                collector.spans += _spans_of(body)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), _Taker)
    collector.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans_of(body: bytes) -> Iterator[CollectedSpan]:
    sent = ExportTraceServiceRequest.FromString(body)
    for of_a_resource in sent.resource_spans:
        resource = _attributes(of_a_resource.resource.attributes)
        for of_a_scope in of_a_resource.scope_spans:
            for span in of_a_scope.spans:
                yield CollectedSpan(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    span=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    began=span.start_time_unix_nano,
                    ended=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                    links=[link.span_id.hex() for link in span.links],
                    failed=span.status.code == 2,
                    service=resource["service.name"],
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in pairs}
