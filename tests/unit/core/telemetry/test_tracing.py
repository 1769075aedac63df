"""Tracing: off without an endpoint, exported to a real collector, and never in the way of the work."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import structlog

from core.telemetry import names, tracing
from core.telemetry.names import Kind
from core.telemetry.origin import Origin
from tests.support.collector import Collector, otlp_collector

REQUEST = Origin.of_headers("req_1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=1")


@pytest.fixture(autouse=True)
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*tracing.ENDPOINTS, *tracing.PROTOCOLS, "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    yield
    tracing.stop_tracing()
    for thread in threading.enumerate():  # one that goes on pauses for random times, in the tests of other files
        if thread.name in ("tracing-stop", "OtelBatchSpanRecordProcessor"):
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with otlp_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        yield collector


def warnings_of_start() -> list[str]:
    with structlog.testing.capture_logs() as logs:
        tracing.start_tracing("chat")
    return [entry["advice"] for entry in logs]


def test_nothing_is_imported_or_recorded_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "core.telemetry.sdk", raising=False)
    assert warnings_of_start() == []
    with tracing.work("process chat.m", REQUEST, job="j") as span:
        assert span is None
        assert tracing.origin_of(span, REQUEST) is REQUEST
    assert "core.telemetry.sdk" not in sys.modules


def test_a_missing_extra_is_one_sentence_that_names_it(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "core.telemetry.sdk", None)
    (advice,) = warnings_of_start()
    assert "pip install 'millrace[telemetry]'" in advice
    assert not tracing.is_on()


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_the_standard_switches_turn_it_off(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert warnings_of_start() == []
    assert not tracing.is_on()


def test_a_protocol_that_is_not_spoken_is_refused_in_words(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    (advice,) = warnings_of_start()
    assert "http/protobuf" in advice
    assert not tracing.is_on()


def test_work_is_a_child_of_its_request_and_binds_its_ids_to_the_log(collector: Collector) -> None:
    tracing.start_tracing("chat")
    with tracing.work("process chat.m", REQUEST, attributes={names.JOB: "j"}, job="j") as span:
        assert span is not None
        inner = tracing.start_span("chat m", span.origin, kind=Kind.CLIENT)
        assert inner is not None
        inner.fail("engine_crash")
        inner.end()
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logs:
            structlog.get_logger().info("inside")
    tracing.stop_tracing()
    (work,), (call,) = collector.named("process chat.m"), collector.named("chat m")
    assert (work.trace_id, work.parent_id, work.kind) == (REQUEST.trace_id, REQUEST.span_id, "CONSUMER")
    assert work.attributes == {names.REQUEST_ID: "req_1", names.JOB: "j"}
    assert (call.parent_id, call.kind, call.is_error) == (work.span_id, "CLIENT", True)
    assert call.attributes[names.ERROR_TYPE] == "engine_crash"
    assert work.service == "millrace-chat"
    assert (logs[0]["job"], logs[0]["trace_id"]) == ("j", REQUEST.trace_id)


def test_an_exception_marks_the_span_with_its_name_and_not_with_its_text(collector: Collector) -> None:
    tracing.start_tracing("chat")
    with pytest.raises(ValueError, match="secret"), tracing.span("work", REQUEST):
        raise ValueError("a secret prompt")
    failed = tracing.start_span("call", REQUEST)
    assert failed is not None
    failed.fail("a secret prompt")
    failed.end()
    tracing.stop_tracing()
    assert [(span.name, span.is_error, span.attributes[names.ERROR_TYPE]) for span in collector.spans] == [
        ("work", True, "ValueError"),
        ("call", True, "_OTHER"),
    ]
    assert b"secret" not in collector.raw


def test_the_span_of_a_batch_ends_in_another_process_than_it_began(collector: Collector) -> None:
    tracing.start_tracing("clerk")
    parts = tracing.batch_origin("batch_1", REQUEST)
    with tracing.span("prepare", parts):
        pass
    tracing.stop_tracing()
    tracing.start_tracing("clerk")
    tracing.record_batch("batch_1", REQUEST, datetime.now(UTC), {names.LINES: 3})
    tracing.stop_tracing()
    (batch,), (prepare,) = collector.named("batch"), collector.named("prepare")
    assert (batch.trace_id, batch.parent_id) == (REQUEST.trace_id, REQUEST.span_id)
    assert prepare.parent_id == batch.span_id
    assert batch.attributes[names.LINES] == 3


def test_a_batch_without_a_trace_of_its_request_has_one_of_its_own(collector: Collector) -> None:
    tracing.start_tracing("clerk")
    first, again = tracing.batch_origin("batch_1", Origin()), tracing.batch_origin("batch_1", Origin())
    assert first == again
    assert first.is_sampled
    assert first.trace_id != tracing.batch_origin("batch_2", Origin()).trace_id
    tracing.record_batch("batch_1", Origin(), datetime.now(UTC), {})
    tracing.stop_tracing()
    (batch,) = collector.spans
    assert (batch.trace_id, batch.span_id, batch.parent_id) == (first.trace_id, first.span_id, "")


@pytest.mark.parametrize("parent", [REQUEST.unsampled(), Origin()])
def test_what_is_not_sampled_is_not_exported(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, parent: Origin
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    tracing.start_tracing("chat")
    with tracing.span("work", parent) as span:
        assert span is not None
        assert not span.origin.is_sampled
    tracing.record_batch("batch_1", parent, datetime.now(UTC), {})
    tracing.stop_tracing()
    assert collector.spans == []


def test_a_name_and_attributes_of_the_operator_are_used(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "labels")
    tracing.start_tracing("chat")
    with tracing.span("work", Origin()):
        pass
    tracing.stop_tracing()
    assert [span.service for span in collector.spans] == ["labels"]


def test_a_collector_that_is_away_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # the threads that try on end soon after this test
    tracing.start_tracing("chat")
    began = time.monotonic()
    for _ in range(1000):
        with tracing.span("work", REQUEST):
            pass
    recorded, stopping = time.monotonic() - began, time.monotonic()
    tracing.stop_tracing(0.5)
    assert recorded < 5, "a thousand connections would take longer"
    assert time.monotonic() - stopping < 2
