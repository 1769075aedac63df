"""OpenTelemetry's SDK: the only module that imports it. Spans wait in a bounded queue for a thread that exports them.

When the collector does not answer, spans are dropped, and the log says so once for a while; no caller waits.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Final

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from core.telemetry import names
from core.telemetry.names import Attributes, Kind
from core.telemetry.origin import Origin
from core.version import VERSION

log = structlog.get_logger()

_SCOPE: Final = "millrace"
_ERROR_TYPE: Final = re.compile(r"[A-Za-z0-9_.]{1,64}")


class Span:
    """A span that has begun. As a context manager it ends with its block, and fails with an exception of it."""

    def __init__(self, inner: trace.Span, parent: Origin) -> None:
        self._inner = inner
        self._parent = parent

    @property
    def origin(self) -> Origin:
        """The origin of work inside this span."""
        return _with_context(self._parent, self._inner.get_span_context())

    def set(self, attributes: Attributes) -> None:
        """Set attributes."""
        self._inner.set_attributes(attributes)

    def add_event(self, name: str, attributes: Attributes) -> None:
        """Record that something happened now; of very many events the SDK keeps the last ones."""
        self._inner.add_event(name, attributes)

    def fail(self, error_type: str) -> None:
        """Mark it as failed. The type is a code or the name of an exception, whose text might quote a prompt."""
        known = error_type if _ERROR_TYPE.fullmatch(error_type) else "_OTHER"  # the conventions' word
        self._inner.set_attribute(names.ERROR_TYPE, known)
        self._inner.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """End it now; it is exported soon."""
        self._inner.end()

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.fail(kind.__name__)
        self.end()


class Tracing:
    """The tracer and the exporter of this process. Raises ValueError for a variable that cannot be read."""

    def __init__(self, process: str) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # `_ReportingExporter` logs in its place
        given = OTELResourceDetector().detect().attributes
        name = {} if SERVICE_NAME in given else {SERVICE_NAME: f"millrace-{process}"}
        self.provider = TracerProvider(
            resource=Resource.create({SERVICE_VERSION: VERSION, **name}), shutdown_on_exit=False
        )
        self._exporter = OTLPSpanExporter()
        self._processor = BatchSpanProcessor(_ReportingExporter(self._exporter))
        self.provider.add_span_processor(self._processor)
        self._tracer = self.provider.get_tracer(_SCOPE, VERSION)

    def close(self) -> None:
        """Export what is left; with a collector that does not answer this takes long."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def start(self, name: str, parent: Origin, kind: Kind, attributes: Attributes | None) -> Span:
        """Begin a span."""
        above = trace.set_span_in_context(NonRecordingSpan(_context(parent)), Context())
        given = {names.REQUEST_ID: parent.request_id} if parent.request_id else {}
        inner = self._tracer.start_span(
            name, context=above, kind=SpanKind[kind.value], attributes={**given, **(attributes or {})}
        )
        return Span(inner, parent)

    def request_origin(self, origin: Origin, path: str) -> Origin:
        """As in `core.telemetry.tracing`. Queries are not recorded, since their values may be private."""
        current = trace.get_current_span()
        context = current.get_span_context()
        if not context.is_valid:
            return origin
        if isinstance(current, ReadableSpan) and current.is_recording():
            current.set_attributes({names.REQUEST_ID: origin.request_id, names.URL_PATH: path})
            if names.URL_QUERY in (current.attributes or {}):
                current.set_attribute(names.URL_QUERY, "REDACTED")
        return _with_context(origin, context)

    def batch_origin(self, batch_id: str, origin: Origin) -> Origin:
        """As in `core.telemetry.tracing`. Without a trace of its request, the batch has one of its own."""
        digest = hashlib.sha256(batch_id.encode()).hexdigest()
        trace_id, span_id = origin.trace_id or digest[16:48], digest[:16]
        is_sampled = origin.is_sampled
        if not origin.traceparent:
            result = self.provider.sampler.should_sample(None, int(trace_id, 16), "batch")
            is_sampled = result.decision.is_sampled()  # type: ignore[no-untyped-call]
        return origin.with_span(trace_id, span_id, is_sampled=is_sampled)

    def record_batch(
        self, batch_id: str, origin: Origin, began_at: datetime, attributes: Attributes, error_type: str
    ) -> None:
        """As in `core.telemetry.tracing`."""
        own = _context(self.batch_origin(batch_id, origin))
        failed = {names.ERROR_TYPE: error_type} if error_type else {}
        self._processor.on_end(
            ReadableSpan(
                "batch",
                context=SpanContext(own.trace_id, own.span_id, False, own.trace_flags, own.trace_state),
                parent=_context(origin) if origin.traceparent else None,
                resource=self.provider.resource,
                attributes={names.BATCH: batch_id, names.REQUEST_ID: origin.request_id, **attributes, **failed},
                kind=SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR if error_type else StatusCode.UNSET),
                start_time=round(began_at.timestamp() * 1e9),
                end_time=time.time_ns(),
                instrumentation_scope=InstrumentationScope(_SCOPE, VERSION),
            )
        )


class _ReportingExporter(SpanExporter):
    """An exporter that logs when spans are lost."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export them, or drop them."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            log.warning("spans_lost", reason="The OTLP endpoint does not take them.")
        return result

    def shutdown(self) -> None:
        """End a retry that is in progress."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _context(origin: Origin) -> SpanContext:
    if not origin.traceparent:
        return trace.INVALID_SPAN_CONTEXT
    return SpanContext(
        int(origin.trace_id, 16),
        int(origin.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(origin.is_sampled)),
        trace_state=TraceState.from_header([origin.tracestate]) if origin.tracestate else None,
    )


def _with_context(origin: Origin, context: SpanContext) -> Origin:
    return origin.with_span(
        trace.format_trace_id(context.trace_id),
        trace.format_span_id(context.span_id),
        is_sampled=context.trace_flags.sampled,
    )
