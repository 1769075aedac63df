"""When an api process stops, the next api process continues its streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import httpx2
import pytest

from tests.support.stack import StackProcess, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

_ASKED = {
    "model": "fake",
    "messages": [{"role": "user", "content": "Tell me a long story."}],
    "stream": True,
    "max_tokens": 1500,
    "ignore_eos": True,
}


def _content(data: list[str]) -> str:
    chunks = [json.loads(each) for each in data if each != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.fixture
def stack(tmp_path: Path, slow_models: Path) -> Iterator[StackProcess]:
    """A stack that waits one second for its streams when it shuts down."""
    process = StackProcess(tmp_path, slow_models, MILLRACE_DRAIN_SECONDS="1")
    process.start()
    try:
        yield process
    finally:
        process.close()


@pytest.mark.parametrize("is_graceful", [True, False], ids=["terminated", "killed"])
def test_a_chat_stream_can_be_resumed_after_its_api_has_stopped(stack: StackProcess, is_graceful: bool) -> None:
    seen: list[str] = []
    api = stack.find("-m api")
    with (
        httpx2.Client(base_url=stack.url, timeout=60) as http,
        http.stream("POST", "/v1/chat/completions", json=_ASKED) as stream,
        nullcontext() if is_graceful else pytest.raises(httpx2.RemoteProtocolError),
    ):
        for line in stream.iter_lines():
            if line.startswith("data: "):
                seen.append(line.removeprefix("data: "))
            if len(seen) == 20:
                api.terminate() if is_graceful else api.kill()
    assert "[DONE]" not in seen
    if is_graceful:
        assert json.loads(seen.pop())["error"]["code"] == "service_unavailable"
    job_id = json.loads(seen[0])["id"]
    wait_for(lambda: httpx2.get(f"{stack.url}/readyz").status_code == 200, "the next api is ready")

    last = {"Last-Event-ID": str(len(seen) - 1)}
    with httpx2.stream("GET", f"{stack.url}/v1/jobs/{job_id}/events", headers=last, timeout=60) as stream:
        rest = [line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")]
    assert rest[-1] == "[DONE]"
    job = httpx2.get(f"{stack.url}/v1/jobs/{job_id}").json()
    assert job["status"] == "completed"
    assert _content(seen + rest) == job["response"]["choices"][0]["message"]["content"]
