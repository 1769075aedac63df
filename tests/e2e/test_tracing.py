"""Traces of a whole stack, as a collector receives them: a chat, a batch with several shards, and a server upstream."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from tests.support.collector import Collector, ReceivedSpan, otlp_collector
from tests.support.stack import (
    StackProcess,
    batch_lines,
    clean_environment,
    result_lines,
    start_batch,
    wait_for,
    write_lines,
)
from tests.support.upstream import chat_answer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
SECRET = "Zyzzyva"
NUM_LINES = 12


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that speaks OpenAI's API, and the headers of its chats."""
    received: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            received.append({name.lower(): value for name, value in self.headers.items()})
            self._answer(chat_answer("hi"))

        def do_GET(self) -> None:
            self._answer(b'{"object": "list", "data": [{"id": "far"}]}')

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with otlp_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector, upstream: tuple[str, list[dict[str, str]]]
) -> Iterator[StackProcess]:
    folder = tmp_path_factory.mktemp("traced")
    models = folder / "models"
    models.mkdir()
    (models / "fake.yaml").write_text("name: fake\nbackend: fake\n")
    (models / "far.yaml").write_text(f"name: far\nbackend: openai\nbase_url: {upstream[0]}\n")
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "MILLRACE_SHARD_LINES": "4",
    }
    process = StackProcess(folder, models, **settings)
    process.start()
    try:
        yield process
    finally:
        process.close()
        assert SECRET.encode() not in collector.raw, "no prompt and no answer is exported"


def chat(stack: StackProcess, model: str, headers: Mapping[str, str], *, stream: bool = False) -> httpx2.Response:
    body = {"model": model, "messages": [{"role": "user", "content": SECRET}], "max_tokens": 8, "stream": stream}
    response = httpx2.post(f"{stack.url}/v1/chat/completions", json=body, headers=dict(headers), timeout=60)
    assert response.status_code == 200, response.text
    return response


def one(collector: Collector, name: str, trace_id: str) -> ReceivedSpan:
    """The span of this name in a trace, once it has arrived."""

    def found() -> list[ReceivedSpan]:
        return [span for span in collector.named(name) if span.trace_id == trace_id]

    wait_for(lambda: bool(found()), f"the span {name!r}", 20)
    (span,) = found()
    return span


def test_a_streamed_chat_is_one_trace_from_its_request_to_its_answer(
    traced: StackProcess, collector: Collector
) -> None:
    chat(traced, "fake", {**HEADERS, "x-request-id": "mine-1"}, stream=True)
    server = one(collector, "POST /v1/chat/completions", TRACE)
    send, process = one(collector, "send chat.fake", TRACE), one(collector, "process chat.fake", TRACE)
    call = one(collector, "chat fake", TRACE)
    chain = [server, send, process, call]
    assert [span.parent_id for span in chain] == [SPAN, server.span_id, send.span_id, process.span_id]
    assert [span.kind for span in chain] == ["SERVER", "PRODUCER", "CONSUMER", "CLIENT"]
    assert {span.service for span in chain} == {"millrace-api", "millrace-chat"}
    assert {span.attributes["millrace.request.id"] for span in chain} == {"mine-1"}
    assert len({span.attributes.get("millrace.job.id") for span in chain[1:]}) == 1
    attributes = call.attributes
    assert (attributes["gen_ai.operation.name"], attributes["gen_ai.request.model"]) == ("chat", "fake")
    assert attributes["gen_ai.usage.output_tokens"] == 8
    assert attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert attributes["gen_ai.response.time_to_first_chunk"] > 0  # type: ignore[operator]
    assert server.attributes["http.response.status_code"] == 200
    assert not any(span.is_error for span in chain)


def test_a_batch_is_one_trace_with_prepare_its_shards_and_finalize(
    traced: StackProcess, collector: Collector, tmp_path: Path
) -> None:
    client = traced.client()
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", batch_lines(NUM_LINES, max_tokens=4)))
    wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch")
    wait_for(
        lambda: any(span.attributes.get("millrace.batch.id") == batch_id for span in collector.named("batch")),
        "the span of the batch",
    )
    (batch,) = [span for span in collector.named("batch") if span.attributes["millrace.batch.id"] == batch_id]
    assert batch.attributes["millrace.lines"] == NUM_LINES
    wait_for(lambda: len(collector.children(batch)) >= 5, "all parts of the batch")
    parts = collector.children(batch)
    assert [span.name for span in parts] == ["prepare batch", *["process batch.fake"] * 3, "finalize batch"]
    assert {span.trace_id for span in parts} == {batch.trace_id}
    assert sum(int(str(span.attributes["millrace.lines"])) for span in parts[1:-1]) == NUM_LINES
    created = one(collector, "POST /v1/batches", batch.trace_id)
    assert batch.parent_id == created.span_id
    assert not [span for span in collector.named("chat fake") if span.trace_id == batch.trace_id], "none for each line"


def test_a_server_upstream_continues_the_trace(
    traced: StackProcess, collector: Collector, upstream: tuple[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    trace_id = TRACE[::-1]
    chat(traced, "far", {"traceparent": f"00-{trace_id}-{SPAN}-01", "tracestate": "vendor=1"})
    call = one(collector, "chat far", trace_id)
    assert upstream[1][-1]["traceparent"] == f"00-{trace_id}-{call.span_id}-01"
    assert upstream[1][-1]["tracestate"] == "vendor=1"

    client = traced.client()
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", batch_lines(1, model="far")))
    wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch")
    assert upstream[1][-1]["traceparent"].endswith("-00"), "a line is in the trace, but is not recorded there"


def test_what_the_client_does_not_sample_is_not_exported(traced: StackProcess, collector: Collector) -> None:
    unsampled = "f" * 32
    chat(traced, "fake", {"traceparent": f"00-{unsampled}-{SPAN}-00"})
    chat(traced, "fake", {"traceparent": f"00-{'e' * 32}-{SPAN}-01"})
    one(collector, "process chat.fake", "e" * 32)
    assert not [span for span in collector.spans if span.trace_id == unsampled]


def test_every_process_logs_the_ids_of_the_request(traced: StackProcess) -> None:
    response = chat(traced, "fake", {"traceparent": f"00-{'d' * 32}-{SPAN}-01", "x-request-id": "mine-2"})
    assert response.headers["x-request-id"] == "mine-2"
    job_id = response.json()["id"]

    def lines(name: str) -> list[dict[str, object]]:
        text = (traced.state_dir / "logs" / f"{name}.log").read_text()
        entries = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [entry for entry in entries if entry.get("job") == job_id]

    for name in ("api", "chat"):
        wait_for(lambda: bool(lines(name)), f"a line in the log of {name}", 20)  # noqa: B023
        assert {(line["request_id"], line["trace_id"]) for line in lines(name)} == {("mine-2", "d" * 32)}


def test_the_logs_of_a_batch_are_found_by_the_id_of_one_of_its_lines(traced: StackProcess, tmp_path: Path) -> None:
    client = traced.client()
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", batch_lines(1, max_tokens=4)))
    wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch")
    output = client.batches.retrieve(batch_id).output_file_id
    line_id = str(result_lines(client, output)[0]["id"])
    events = {"request", "batch_prepared", "shard_claimed", "shard_left", "batch_ended"}
    for wanted in (line_id, batch_id, str(output)):
        wait_for(lambda: events <= {line["event"] for line in logs(traced, wanted)}, f"logs of {wanted}", 20)  # noqa: B023
        assert {line.get("batch", batch_id) for line in logs(traced, wanted)} == {batch_id}


def test_an_id_that_no_log_has_is_an_error_that_names_the_place(traced: StackProcess) -> None:
    done = run_logs(traced, "req_nothing")
    assert done.returncode == 1
    assert str(traced.state_dir / "logs") in done.stderr


def run_logs(stack: StackProcess, wanted: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("millrace")), "logs", wanted, "--json"]
    command += ["--state-dir", str(stack.state_dir)]
    environment = clean_environment()
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def logs(stack: StackProcess, wanted: str) -> list[dict[str, object]]:
    """The lines of `millrace logs`, except those about requests that only read."""
    lines = [json.loads(line) for line in run_logs(stack, wanted).stdout.splitlines()]
    return [line for line in lines if line.get("method") != "GET" and "event" in line]
