"""Batches of completions and of embeddings, with the official client, from the file to the results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI
from openai.types import Batch
from openai.types.responses import Response

from core.settings import ROOT
from engine.backends.llama.tokenizer import load_vocabulary
from tests.support.check import check_problem
from tests.support.stack import result_lines, wait_for, write_lines


def run(client: OpenAI, path: Path, endpoint: Any, bodies: list[dict[str, Any]], url: str | None = None) -> Batch:
    """Run a batch to its end."""
    lines: list[dict[str, Any]] = [
        {"custom_id": f"line-{number}", "method": "POST", "url": url or endpoint, "body": body}
        for number, body in enumerate(bodies)
    ]
    with write_lines(path, lines).open("rb") as stream:
        file = client.files.create(file=stream, purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    wait_for(lambda: client.batches.retrieve(batch.id).status in ("completed", "failed"), "the batch ends")
    return client.batches.retrieve(batch.id)


def answers(client: OpenAI, batch: Batch) -> dict[str, Any]:
    return {line["custom_id"]: line["response"]["body"] for line in result_lines(client, batch.output_file_id)}  # type: ignore[index,misc]


def problems(client: OpenAI, batch: Batch) -> dict[str, Any]:
    lines: list[Any] = result_lines(client, batch.error_file_id)
    return {line["custom_id"]: (line["response"]["status_code"], line["response"]["body"]["error"]) for line in lines}


def test_lines_of_completions_have_the_body_of_the_sync_endpoint(client: OpenAI, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": "fake", "prompt": "one", "temperature": 0},
        {"model": "fake", "prompt": ["one", "two"], "n": 2, "echo": True, "logprobs": 0},
        {"model": "fake", "prompt": "one", "suffix": "two"},
        {"model": "fake", "messages": [{"role": "user", "content": "a chat"}]},
        {"model": "fake", "prompt": ["one", "x" * 5000]},
        {"model": "fake", "prompt": "one", "temperature": 0},
    ]
    batch = run(client, tmp_path / "in.jsonl", "/v1/completions", bodies)
    assert (batch.status, batch.endpoint, batch.request_counts) == (
        "completed",
        "/v1/completions",
        batch.request_counts,
    )
    said = answers(client, batch)
    assert set(said) == {"line-0", "line-1", "line-5"}
    for number in (0, 1):
        sync = client.completions.create(**bodies[number])
        assert said[f"line-{number}"]["choices"] == [choice.model_dump() for choice in sync.choices]
        assert said[f"line-{number}"]["object"] == "text_completion"
    assert said["line-5"]["choices"] == said["line-0"]["choices"], "a duplicate"
    wrong = {name: (status, error["code"], error["param"]) for name, (status, error) in problems(client, batch).items()}
    assert wrong == {
        "line-2": (400, "unsupported_parameter", "suffix"),
        "line-3": (400, "missing_required_parameter", "prompt"),
        "line-4": (400, "context_length_exceeded", "prompt"),
    }


def test_lines_of_embeddings_have_the_body_of_the_sync_endpoint(client: OpenAI, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": "fake", "input": "one"},
        {"model": "fake", "input": ["one", "two"], "encoding_format": "base64", "dimensions": 8},
        {"model": "slow", "input": "one"},
        {"model": "fake", "input": "x" * 5000},
        {"model": "fake", "input": "one"},
    ]
    batch = run(client, tmp_path / "in.jsonl", "/v1/embeddings", bodies)
    said = answers(client, batch)
    assert set(said) == {"line-0", "line-1", "line-4"}
    sync = client.embeddings.create(model="fake", input="one", encoding_format="float").model_dump()
    assert said["line-0"] == sync
    assert said["line-4"] == sync
    assert [each["index"] for each in said["line-1"]["data"]] == [0, 1]
    assert isinstance(said["line-1"]["data"][0]["embedding"], str)
    wrong = {name: (status, error["code"], error["param"]) for name, (status, error) in problems(client, batch).items()}
    assert wrong == {
        "line-2": (400, "invalid_value", "model"),
        "line-3": (400, "context_length_exceeded", "input"),
    }
    assert batch.usage is not None
    assert (batch.usage.input_tokens, batch.usage.output_tokens) == (4 + 8 + 4, 0)


def test_a_line_of_another_endpoint_fails_the_file(client: OpenAI, tmp_path: Path) -> None:
    body = {"model": "fake", "prompt": "one"}
    batch = run(client, tmp_path / "in.jsonl", "/v1/embeddings", [body], url="/v1/completions")
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(error.line, error.param) for error in batch.errors.data or ()] == [(1, "url")]


def test_lines_of_responses_have_the_body_of_the_sync_endpoint(client: OpenAI, tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": "fake", "input": "one", "temperature": 0},
        {"model": "fake", "input": [{"role": "user", "content": "two"}], "instructions": "Be brief.", "temperature": 0},
        {"model": "fake", "input": "one", "previous_response_id": "resp_1"},
        {"model": "fake", "input": "x" * 5000},
    ]
    batch = run(client, tmp_path / "in.jsonl", "/v1/responses", bodies)
    said = answers(client, batch)
    assert set(said) == {"line-0", "line-1"}
    for number in (0, 1):
        line, sync = Response.model_validate(said[f"line-{number}"]), client.responses.create(**bodies[number])
        assert (line.output_text, line.status) == (sync.output_text, sync.status)
        assert line.id.startswith("resp_")
    wrong = {name: (status, error["code"], error["param"]) for name, (status, error) in problems(client, batch).items()}
    assert wrong["line-2"][2] == "previous_response_id"
    assert wrong["line-3"] == (400, "context_length_exceeded", "input")


def test_a_response_of_a_batch_is_found_continued_and_deleted(
    client: OpenAI, http: httpx2.Client, tmp_path: Path
) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": "fake", "input": "one", "instructions": "Be brief.", "metadata": {"a": "b"}},
        {"model": "fake", "input": "two", "store": False},
    ]
    said = answers(client, run(client, tmp_path / "in.jsonl", "/v1/responses", bodies))
    kept, unkept = said["line-0"]["id"], said["line-1"]["id"]
    assert client.responses.retrieve(kept).to_dict() == said["line-0"]
    (item,) = http.get(f"/v1/responses/{kept}/input_items").json()["data"]
    assert item["content"][0]["text"] == "one"
    later = client.responses.create(model="fake", input="more", previous_response_id=kept)
    last = client.responses.create(model="fake", input="more", previous_response_id=later.id)
    assert later.usage is not None
    assert last.usage is not None
    assert last.usage.input_tokens > later.usage.input_tokens > said["line-0"]["usage"]["output_tokens"]
    check_problem(http.get(f"/v1/responses/{kept}?stream=true"), 400, "invalid_value", "stream")
    check_problem(http.post(f"/v1/responses/{kept}/cancel"), 400, "response_not_cancellable", "response_id")
    assert http.delete(f"/v1/responses/{kept}").json()["deleted"] is True
    for gone in (kept, unkept, kept.replace("resp_", "batch_req_")):
        check_problem(http.get(f"/v1/responses/{gone}"), 404, None, "response_id")
    refused = http.post("/v1/responses", json={**bodies[0], "previous_response_id": later.id})
    check_problem(refused, 404, "previous_response_not_found", "previous_response_id")


def test_reasoning_tokens_are_counted_for_the_batch_and_for_each_line(demo: OpenAI, tmp_path: Path) -> None:
    bodies = [{"model": "lab/thinker", "messages": [{"role": "user", "content": text}]} for text in ("one", "two")]
    batch = run(demo, tmp_path / "in.jsonl", "/v1/chat/completions", bodies)
    usages = [
        answer["usage"]["completion_tokens_details"]["reasoning_tokens"] for answer in answers(demo, batch).values()
    ]
    assert batch.usage is not None
    assert batch.usage.output_tokens_details.reasoning_tokens == sum(usages) > 0
    lines = demo.get(f"/batches/{batch.id}/requests", cast_to=dict[str, Any])["data"]
    assert [line["usage"]["completion_tokens_details"]["reasoning_tokens"] for line in lines] == usages


def test_a_drawn_answer_can_be_drawn_again_from_what_is_recorded_of_it(demo: OpenAI, tmp_path: Path) -> None:
    body: Any = {
        "model": "demo",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 2,
        "max_tokens": 24,
    }
    template = load_vocabulary(ROOT / "models" / "demo.gguf").chat_template
    batch = run(demo, tmp_path / "in.jsonl", "/v1/chat/completions", [body, body])
    texts = [answer["choices"][0]["message"]["content"] for answer in answers(demo, batch).values()]
    assert texts[0] != texts[1], "each line draws for itself"
    for number, text in enumerate(texts):
        record = demo.get(f"/batches/{batch.id}/requests/line-{number}", cast_to=dict[str, Any])["reproducibility"]
        again = demo.chat.completions.create(**body, seed=record["seed"])
        assert again.choices[0].message.content == text
        assert again.system_fingerprint == record["system_fingerprint"]
        assert record["model_hash"]
        assert record["settings_hash"]
        assert record["template_hash"] == hashlib.sha256(str(template).encode()).hexdigest()
        parameters = record["parameters"]
        assert (parameters["temperature"], parameters["max_tokens"], parameters["top_p"]) == (2, 24, 1)


def test_an_answer_records_the_parameters_of_the_model_file(demo: OpenAI, tmp_path: Path) -> None:
    batch = run(demo, tmp_path / "in.jsonl", "/v1/completions", [{"model": "demo", "prompt": "What is"}])
    record = demo.get(f"/batches/{batch.id}/requests/line-0", cast_to=dict[str, Any])["reproducibility"]
    assert record["parameters"] == {
        "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "typical_p": 1, "frequency_penalty": 0,
        "presence_penalty": 0, "repeat_penalty": 1, "max_tokens": 16,
    }  # fmt: skip
