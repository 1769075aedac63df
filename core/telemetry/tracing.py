"""Tracing of this process: off, at the cost of one check, unless an OTLP endpoint is configured and the extra is installed.

The entry point of a process calls `start_tracing`, after any fork, since the exporter has a thread. Everything is configured
by OpenTelemetry's own variables, `OTEL_*`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Final

import structlog

from core.telemetry.names import Attributes, Kind
from core.telemetry.origin import Origin

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from core.telemetry.sdk import Span, Tracing

log = structlog.get_logger()

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_CAPTURED: Final = ("true", "span_only", "span_and_event")
_FLUSH_SECONDS: Final = 2.0
_tracing: Tracing | None = None


def start_tracing(process: str) -> None:
    """Begin to record and export spans of this process, if that is asked for; a problem is one line of the log."""
    global _tracing
    if not _is_wanted():
        return
    protocol = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        advice = (
            f"Spans are sent by http/protobuf only: unset {PROTOCOLS[1]}, and name the collector's HTTP port (4318)."
        )
        log.warning("tracing_off", protocol=protocol, advice=advice)
        return
    try:
        from core.telemetry.sdk import Tracing
    except ImportError:
        advice = "An OTLP endpoint is configured, but the extra is missing: pip install 'millrace[telemetry]'."
        log.warning("tracing_off", advice=advice)
        return
    try:
        _tracing = Tracing(process)
    except ValueError as error:  # of a variable; it is in the message
        log.warning(
            "tracing_off", reason=str(error), advice="Correct the OTEL_ variable, then start the process again."
        )


def stop_tracing(timeout_seconds: float = _FLUSH_SECONDS) -> None:
    """Export what is left, for at most this time and two seconds; the rest is dropped."""
    global _tracing
    timeout_seconds = min(timeout_seconds, _FLUSH_SECONDS)
    tracing, _tracing = _tracing, None
    if tracing is not None:
        stopping = threading.Thread(target=tracing.close, name="tracing-stop", daemon=True)
        stopping.start()
        stopping.join(timeout_seconds)


def _is_wanted() -> bool:
    environment = os.environ
    is_disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_none = environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none"
    return any(environment.get(name, "").strip() for name in ENDPOINTS) and not is_disabled and not is_none


def is_on() -> bool:
    """Are spans recorded?"""
    return _tracing is not None


def tracer_provider() -> TracerProvider | None:
    """OpenTelemetry's provider, for FastAPI, which records a span for each request; None while tracing is off."""
    return None if _tracing is None else _tracing.provider


def request_origin(origin: Origin, path: str) -> Origin:
    """Return the origin of a request with its server span, which FastAPI has begun; name it by id and `path`."""
    return origin if _tracing is None else _tracing.request_origin(origin, path)


def span(
    name: str, parent: Origin, *, kind: Kind = Kind.INTERNAL, attributes: Attributes | None = None
) -> AbstractContextManager[Span | None]:
    """A span for the length of a `with` block, in which an exception marks it as failed; None while tracing is off."""
    return _OFF if _tracing is None else _tracing.start(name, parent, kind, attributes)


def start_span(
    name: str, parent: Origin, *, kind: Kind = Kind.INTERNAL, attributes: Attributes | None = None
) -> Span | None:
    """A span that its owner ends; one that is never ended is not exported."""
    return None if _tracing is None else _tracing.start(name, parent, kind, attributes)


_OFF: Final[AbstractContextManager[None]] = nullcontext()


@contextmanager
def work(
    name: str, origin: Origin, *, kind: Kind = Kind.CONSUMER, attributes: Attributes | None = None, **ids: str
) -> Iterator[Span | None]:
    """A span for a piece of work, and its ids in all log lines of this thread meanwhile."""
    with span(name, origin, kind=kind, attributes=attributes) as begun:
        of = origin_of(begun, origin)
        with structlog.contextvars.bound_contextvars(**of.log_fields(), **ids):
            yield begun


def origin_of(begun: Span | None, parent: Origin) -> Origin:
    """Return the origin of work inside this span; that of its parent while tracing is off."""
    return parent if begun is None else begun.origin


def batch_origin(batch_id: str, origin: Origin) -> Origin:
    """Return the origin of the parts of a batch: its own span, whose ids are derived, since it ends in another process."""
    return origin if _tracing is None else _tracing.batch_origin(batch_id, origin)


def record_batch(
    batch_id: str, origin: Origin, began_at: datetime, attributes: Attributes, error_type: str = ""
) -> None:
    """Export the span of a batch that has ended now."""
    if _tracing is not None:
        _tracing.record_batch(batch_id, origin, began_at, attributes, error_type)


def captures_content() -> bool:
    """Shall spans have prompts and answers? Only if the variable of the conventions asks for that."""
    return os.environ.get(_CAPTURE, "").strip().lower() in _CAPTURED
