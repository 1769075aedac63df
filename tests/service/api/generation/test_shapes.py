"""Responses have exactly the fields of the official client's types: none missing, none unknown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tests.support.stack import StackProcess

URL = "/v1/chat/completions"
OURS = {"reasoning_content"}
TOOL = {"type": "function", "function": {"name": "now"}}
ASKED: dict[str, dict[str, Any]] = {
    "text": {"model": "demo"},
    "likelihoods of two answers": {"model": "demo", "n": 2, "logprobs": True, "top_logprobs": 2},
    "a call": {"model": "caller", "tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    "a thought": {"model": "lab/thinker"},
    "a thought and a schema": {"model": "lab/thinker", "response_format": {"type": "json_object"}, "max_tokens": 60},
}
each = pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())


def body(asked: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 120, **asked, **more}


def unknown_fields(value: object) -> Iterator[str]:
    """Names of fields that the client's types lack, at any depth."""
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from unknown_fields(item)


@pytest.fixture(scope="module")
def raw(answering: StackProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=answering.url, timeout=30) as client:
        yield client


@each
def test_an_answer_is_the_clients_type_and_no_more(raw: httpx2.Client, asked: dict[str, Any]) -> None:
    response = raw.post(URL, json=body(asked))
    assert response.status_code == 200, response.text
    answer = ChatCompletion.model_validate_json(response.content, strict=True)
    assert set(unknown_fields(answer)) <= OURS
    assert response.json()["choices"][0].keys() == {"index", "message", "logprobs", "finish_reason"}
    assert {"role", "content", "refusal"} <= response.json()["choices"][0]["message"].keys()


@each
def test_every_frame_of_a_stream_is_one_line_of_the_clients_type(raw: httpx2.Client, asked: dict[str, Any]) -> None:
    response = raw.post(URL, json=body(asked, stream=True, stream_options={"include_usage": True}))
    *frames, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames)
    chunks = [ChatCompletionChunk.model_validate_json(frame.removeprefix("data: "), strict=True) for frame in frames]
    assert {name for chunk in chunks for name in unknown_fields(chunk)} <= OURS
    assert len({(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint) for chunk in chunks}) == 1
    *said, last = chunks
    assert (last.choices, [chunk.usage for chunk in said]) == ([], [None] * len(said))
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    for index in range(asked.get("n", 1)):
        choices = [choice for chunk in said for choice in chunk.choices if choice.index == index]
        assert [choice.delta.role for choice in choices] == ["assistant"] + [None] * (len(choices) - 1)
        assert [choice.finish_reason is None for choice in choices] == [True] * (len(choices) - 1) + [False]
        assert choices[-1].delta.model_fields_set == set()
