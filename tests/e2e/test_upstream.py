"""A Millrace in front of another one: every endpoint through `backend: openai`, with answers and usage as there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.support.processes import command_of
from tests.support.stack import StackProcess, result_lines, start_batch, wait_for, write_lines

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

_KEY = "UPSTREAM_KEY"  # of the environment of the stack in front
_SECRET = "sk-upstream-secret-1234"
_CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 24}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """The server upstream: a Millrace with the fake backend."""
    folder = tmp_path_factory.mktemp("behind")
    (folder / "models").mkdir()
    (folder / "models" / "real.yaml").write_text("name: org/real\nbackend: fake\nembeddings: true\n")
    process = StackProcess(folder, folder / "models")
    process.start()
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module")
def front(behind: StackProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """The stack under test: models of the server behind, one of them with a wrong name, one at an address without a server."""
    folder = tmp_path_factory.mktemp("front")
    models = folder / "models"
    models.mkdir()
    there = f"backend: openai\nbase_url: {behind.url}\napi_key_env: {_KEY}\n"
    (models / "far.yaml").write_text(
        f"name: far\naliases: [also-far]\n{there}model: org/real\nendpoints: [chat, completions, embeddings]\n"
        "headers: {X-Title: '${HOME}'}\n"
    )
    (models / "wrong.yaml").write_text(f"name: wrong\n{there}model: org/unreal\n")
    process = StackProcess(folder, models, **{_KEY: _SECRET})
    process.start()
    try:
        yield process
    finally:
        process.close()


@pytest.fixture(scope="module")
def far(front: StackProcess) -> OpenAI:
    return front.client()


@pytest.fixture(scope="module")
def near(behind: StackProcess) -> OpenAI:
    return behind.client()


def test_a_chat_is_the_same_whole_and_streamed(far: OpenAI, near: OpenAI) -> None:
    direct = near.chat.completions.create(model="org/real", **_CHAT)
    whole = far.chat.completions.create(model="also-far", **_CHAT)
    assert whole.model == "far"
    assert whole.choices[0].message.content == direct.choices[0].message.content
    assert whole.choices[0].finish_reason == direct.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert direct.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
        direct.usage.prompt_tokens,
        direct.usage.completion_tokens,
    )
    chunks = list(
        far.chat.completions.create(model="far", stream=True, stream_options={"include_usage": True}, **_CHAT)
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == direct.choices[0].message.content
    assert len(chunks) > 5, "it comes delta by delta"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == direct.usage.completion_tokens


def test_completions_embeddings_and_responses_are_those_of_the_server(far: OpenAI, near: OpenAI) -> None:
    prompts: dict[str, Any] = {"prompt": ["once", "twice"], "max_tokens": 8, "n": 2}
    completed = far.completions.create(model="far", **prompts)
    direct = near.completions.create(model="org/real", **prompts)
    assert [choice.text for choice in completed.choices] == [choice.text for choice in direct.choices]
    assert [choice.index for choice in completed.choices] == [0, 1, 2, 3]

    vectors = far.embeddings.create(model="far", input=["a", "b"]).data
    expected = near.embeddings.create(model="org/real", input=["a", "b"]).data
    assert [each.embedding for each in vectors] == [each.embedding for each in expected]

    first = far.responses.create(model="far", input="hello", max_output_tokens=8)
    assert first.output_text
    second = far.responses.create(model="far", input="more", previous_response_id=first.id, max_output_tokens=8)
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens, "the first turn was sent, too"


def usage(url: str) -> tuple[int, int]:
    """The tokens of prompts and answers that a server has counted."""
    results = [result for bucket in httpx2.get(f"{url}/v1/usage").json()["data"] for result in bucket["results"]]
    return sum(each["input_tokens"] for each in results), sum(each["output_tokens"] for each in results)


def test_a_batch_has_the_error_of_the_server_in_the_line_that_caused_it(
    front: StackProcess, behind: StackProcess, far: OpenAI, tmp_path: Path
) -> None:
    before = [usage(each.url) for each in (front, behind)]
    bodies: list[dict[str, Any]] = [{"model": "far", **_CHAT, "seed": index} for index in range(6)]
    bodies[2]["temperature"] = 99
    bodies[3]["messages"] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
    bodies[4]["model"] = "wrong"
    lines = [
        {"custom_id": f"line-{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for index, body in enumerate(bodies)
    ]
    batch_id = start_batch(far, write_lines(tmp_path / "lines.jsonl", lines))
    wait_for(lambda: far.batches.retrieve(batch_id).status == "completed", "the batch is over")
    batch = far.batches.retrieve(batch_id)
    assert batch.request_counts is not None
    assert (batch.request_counts.completed, batch.request_counts.failed) == (3, 3)
    failed: dict[Any, Any] = {line["custom_id"]: line["response"] for line in result_lines(far, batch.error_file_id)}
    errors = {name: (each["status_code"], each["body"]["error"]["code"]) for name, each in failed.items()}
    assert errors == {
        "line-2": (400, "invalid_value"),
        "line-3": (400, "unsupported_parameter"),
        "line-4": (502, "upstream_not_found"),
    }
    assert failed["line-2"]["body"]["error"]["param"] == "temperature"
    answered = result_lines(far, batch.output_file_id)
    assert {line["custom_id"] for line in answered} == {"line-0", "line-1", "line-5"}
    after = [usage(each.url) for each in (front, behind)]
    here, there = ((new[0] - old[0], new[1] - old[1]) for old, new in zip(before, after, strict=True))
    assert here == there
    assert min(here) > 0


def test_an_error_of_the_server_is_that_of_the_request(front: StackProcess, far: OpenAI) -> None:
    with httpx2.Client(base_url=front.url) as http:
        asked = {"model": "far", **_CHAT, "temperature": 99}
        for stream in (False, True):
            refused = http.post("/v1/chat/completions", json={**asked, "stream": stream})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")
        not_there = http.post("/v1/chat/completions", json={"model": "wrong", **_CHAT})
        assert (not_there.status_code, not_there.json()["error"]["code"]) == (502, "upstream_not_found")
        assert not_there.headers["x-should-retry"] == "false"
        counted = http.post("/v1/responses/input_tokens", json={"model": "far", "input": "hello"})
        assert counted.status_code == 400
        for path in ("/v1/completions", "/v1/embeddings"):
            unserved = http.post(path, json={"model": "wrong", "prompt": "a", "input": "a"})
            expected = 502 if path == "/v1/completions" else 400
            assert unserved.status_code == expected, unserved.text


def test_the_model_is_listed_with_its_backend_and_no_secret_is_shown(front: StackProcess) -> None:
    def models() -> dict[str, Any]:
        return {each["id"]: each for each in httpx2.get(f"{front.url}/v1/models").json()["data"]}

    # The list of the server may come after the first requests: it is asked for it when the engine starts.
    wait_for(lambda: "org/real" in str(models()["wrong"]["warning"]), "the names that the server has are shown", 20)
    listed = models()
    assert (listed["far"]["backend"], listed["far"]["context_size"]) == ("openai", None)
    assert "/v1/embeddings" in listed["far"]["endpoints"]
    assert "/v1/embeddings" not in listed["wrong"]["endpoints"]
    ready = httpx2.get(f"{front.url}/readyz")
    assert ready.status_code == 200, ready.text
    commands = [" ".join(command_of(process)) for process in front.descendants()]
    assert any("engine.upstream.server" in line for line in commands)
    shown = [*commands, json.dumps(listed), ready.text, front.output, front.metrics()]
    shown += [path.read_text() for path in (front.state_dir / "logs").glob("*.log")]
    assert not any(_SECRET in text for text in shown)
