"""Responses during an outage of a service, and recovery after it."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

HELLO: Any = [{"role": "user", "content": "hello"}]
BODY = {"model": "fake", "messages": HELLO}


def postmaster(stack: StackProcess) -> psutil.Process:
    return stack.find("bin/postgres", "-D")


def test_a_killed_database_is_restarted_and_loses_nothing(stack: StackProcess, tmp_path: Path) -> None:
    lines = batch_lines(150)
    batch_id = start_batch(stack.client(), write_lines(tmp_path / "in.jsonl", lines))
    wait_for(lambda: stack.client().batches.retrieve(batch_id).request_counts.completed > 5, "the batch has begun")  # type: ignore[union-attr]
    postmaster(stack).kill()
    wait_for(lambda: stack.client().batches.retrieve(batch_id).status == "completed", "the batch completes", 90)
    output = result_lines(stack.client(), stack.client().batches.retrieve(batch_id).output_file_id)
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]


def test_a_frozen_queue_is_a_503_for_chat_and_only_a_delay_for_jobs(stack: StackProcess) -> None:
    valkey = stack.find("valkey-server")
    valkey.suspend()
    try:
        response = httpx2.post(f"{stack.url}/v1/chat/completions", json=BODY, timeout=30)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert response.json()["error"]["code"] == "service_unavailable"
        accepted = httpx2.post(f"{stack.url}/v1/jobs", json=BODY, timeout=30)
        assert accepted.status_code == 202
        assert httpx2.get(f"{stack.url}/readyz", timeout=30).status_code == 503
    finally:
        valkey.resume()
    url = f"{stack.url}/v1/jobs/{accepted.json()['id']}"
    wait_for(lambda: httpx2.get(url).json()["status"] == "completed", "the job is answered")
    assert stack.client().chat.completions.create(model="fake", messages=HELLO).choices


def test_a_frozen_database_is_a_503_with_retry_after(stack: StackProcess) -> None:
    frozen = [postmaster(stack), *postmaster(stack).children(recursive=True)]
    for process in frozen:
        process.suspend()
    try:
        response = httpx2.get(f"{stack.url}/v1/batches", timeout=60)
        assert response.status_code == 503
        assert response.headers["retry-after"]
    finally:
        for process in frozen:
            process.resume()
    wait_for(lambda: httpx2.get(f"{stack.url}/v1/batches").status_code == 200, "the database answers again")


@pytest.mark.parametrize("process", ["engine.process.server", "workers.consumers.main chat"])
def test_a_chat_whose_engine_or_worker_dies_ends_with_its_answer_or_a_clear_error(
    stack: StackProcess, process: str
) -> None:
    url, body = f"{stack.url}/v1/chat/completions", {**BODY, "stream": True, "ignore_eos": True, "max_tokens": 400}
    with httpx2.stream("POST", url, json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        stack.find(*process.split()).kill()
        received = [line for line in lines if line]
    assert '"error"' in received[-1] or received[-1] == "data: [DONE]"
    assert "code" in received[-1] or len(received) > 300
    assert stack.client().with_options(max_retries=5).chat.completions.create(model="fake", messages=HELLO).choices


def test_ctrl_c_lets_answers_finish_and_the_next_start_resumes_the_batch(stack: StackProcess, tmp_path: Path) -> None:
    lines = batch_lines(200)
    batch_id = start_batch(stack.client(), write_lines(tmp_path / "in.jsonl", lines))
    wait_for(lambda: stack.client().batches.retrieve(batch_id).request_counts.completed > 5, "the batch has begun")  # type: ignore[union-attr]
    answers: list[str] = []

    def chat() -> None:
        with httpx2.stream("POST", f"{stack.url}/v1/chat/completions", json=BODY | {"stream": True}) as response:
            answers.extend(line for line in response.iter_lines() if line)

    thread = threading.Thread(target=chat)
    thread.start()
    wait_for(lambda: "millrace_open_streams 1.0" in stack.metrics(), "the stream has begun")
    processes = stack.descendants()
    began = time.monotonic()
    assert stack.interrupt() == 0
    assert time.monotonic() - began < 10 + 6, "drain_seconds is 10"
    thread.join(10)
    assert answers[-1] == "data: [DONE]"
    assert len(answers) >= 40
    assert not [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    stack.start()
    wait_for(lambda: stack.client().batches.retrieve(batch_id).status == "completed", "the batch completes", 60)
    output = result_lines(stack.client(), stack.client().batches.retrieve(batch_id).output_file_id)
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]


@pytest.mark.parametrize("kind", ["chat", "batch", "clerk"])
def test_an_idle_worker_stops_at_once_on_sigterm(stack: StackProcess, kind: str) -> None:
    process = stack.find("workers.consumers.main", kind)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(10)
    assert time.monotonic() - began < 5
