"""An OTLP collector in this process: keeps the spans that it receives, and the bytes of all requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage


@dataclass(frozen=True)
class ReceivedSpan:
    """A span, with ids in hexadecimal."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    is_error: bool
    start: int
    end: int
    attributes: dict[str, object]
    events: list[str]


@dataclass
class Collector:
    """The endpoint for `OTEL_EXPORTER_OTLP_ENDPOINT`, and what arrived there."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    raw: bytes = b""

    def named(self, name: str) -> list[ReceivedSpan]:
        """The spans of this name, in the order in which they began."""
        return sorted((span for span in self.spans if span.name == name), key=lambda span: span.start)

    def children(self, parent: ReceivedSpan) -> list[ReceivedSpan]:
        """The spans below one."""
        return sorted((span for span in self.spans if span.parent_id == parent.span_id), key=lambda span: span.start)

    def receive(self, body: bytes) -> None:
        """Take the body of one request."""
        message = ExportTraceServiceRequest.FromString(body)
        self.raw += body
        for resource in message.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [_received(names["service.name"], span) for span in scope.spans]


@contextmanager
def otlp_collector() -> Iterator[Collector]:
    """A collector for the length of a test."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            collector.receive(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _received(service: str, span: SpanMessage) -> ReceivedSpan:
    return ReceivedSpan(
        service=service,
        name=span.name,
        kind=SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        is_error=span.status.code == 2,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes={each.key: _value(each.value) for each in span.attributes},
        events=[event.name for event in span.events],
    )


def _value(value: object) -> object:
    kind = value.WhichOneof("value")  # type: ignore[attr-defined]
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]  # type: ignore[attr-defined]
    return getattr(value, kind)
