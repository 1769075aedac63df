"""Shapes of chat answers, whole and in chunks, and that both hold the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from core.schemas.chat import ChatRequest
from core.schemas.chunks import chunks_of
from engine.types import (
    Choice,
    Delta,
    Finished,
    FinishReason,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from workers.context import system_fingerprint
from workers.generation.endpoints.base import ResponseHeader
from workers.generation.endpoints.chat_response import ChatStreamEncoder, chat_completion
from workers.generation.problems import truncated_problem

HEADER = ResponseHeader(job_id="chatcmpl-1", model="m", fingerprint="fp_1")
USAGE = Usage(prompt_tokens=7, completion_tokens=5, cached_tokens=2, reasoning_tokens=3)
NOW = ToolCall(id="call_1", name="now", arguments="{}")
LIKELY = TokenLogprob(
    piece=b"\xc3\xa9",
    logprob=-0.5,
    top=[TokenLogprob(piece=b"\xf0", logprob=-1.5), TokenLogprob(piece=b"a", logprob=-9e999)],
)


def finished(*choices: Choice) -> Finished:
    return Finished(request_id="chatcmpl-1", choices=list(choices), usage=USAGE)


def whole(*choices: Choice) -> dict[str, Any]:
    """The stored answer, checked by OpenAI's own types."""
    answer = chat_completion(HEADER, finished(*choices))
    ChatCompletion.model_validate_json(answer, strict=True)
    value: dict[str, Any] = json.loads(answer)
    return value


def encoder(*, include_usage: bool = False) -> ChatStreamEncoder:
    return ChatStreamEncoder(HEADER, include_usage=include_usage)


def added_up(chunks: list[bytes]) -> list[dict[str, Any]]:
    """The answers that a client has read from a stream, by index."""
    answers: dict[int, dict[str, Any]] = {}
    for chunk in map(json.loads, chunks):
        ChatCompletionChunk.model_validate(chunk)
        for choice in chunk["choices"]:
            is_first = choice["index"] not in answers
            delta = choice["delta"]
            assert ("role" in delta) is is_first, "only the first chunk has the role"
            answer = answers.setdefault(choice["index"], {"content": "", "reasoning": "", "calls": {}, "logprobs": []})
            answer["content"] += delta.get("content", "")
            answer["reasoning"] += delta.get("reasoning_content", "")
            answer["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
            answer["reason"] = choice["finish_reason"]
            for call in delta.get("tool_calls", []):
                if call["index"] not in answer["calls"]:
                    assert call["type"] == "function"
                    answer["calls"][call["index"]] = [call["id"], call["function"]["name"], ""]
                answer["calls"][call["index"]][2] += call["function"]["arguments"]
    return [answers[index] for index in sorted(answers)]


def test_an_answer_has_only_the_keys_it_has_values_for() -> None:
    answer = whole(Choice(reason=FinishReason.STOP, text="hello"))
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert choice["logprobs"] is None
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert answer["usage"]["total_tokens"] == 12


def test_content_is_null_where_there_are_only_calls() -> None:
    calling = Choice(reason=FinishReason.TOOL_CALLS, text="", tool_calls=[NOW], reasoning="hm")
    (choice,) = whole(calling)["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "hm"
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    ]
    assert choice["finish_reason"] == "tool_calls"
    both = Choice(reason=FinishReason.TOOL_CALLS, text="Let me see.", tool_calls=[NOW])
    assert whole(both)["choices"][0]["message"]["content"] == "Let me see."
    cut_in_thought = Choice(reason=FinishReason.LENGTH, text="", reasoning="hm")
    assert whole(cut_in_thought)["choices"][0]["message"]["content"] == ""


def test_logprobs_have_the_shape_of_chat_and_are_finite() -> None:
    (choice,) = whole(Choice(reason=FinishReason.STOP, text="é", logprobs=[LIKELY]))["choices"]
    assert choice["logprobs"] == {
        "content": [
            {
                "token": "é",
                "logprob": -0.5,
                "bytes": [195, 169],
                "top_logprobs": [
                    {"token": "\ufffd", "logprob": -1.5, "bytes": [240]},
                    {"token": "a", "logprob": -9999.0, "bytes": [97]},
                ],
            }
        ],
        "refusal": None,
    }


def test_a_stream_of_several_answers_adds_up_by_index() -> None:
    stream = encoder()
    chunks = [
        *stream.encode_delta(Delta(request_id="r", num_tokens=1, index=1, text="b")),
        *stream.encode_delta(Delta(request_id="r", num_tokens=1, index=0, reasoning="hm", logprobs=[LIKELY])),
        *stream.encode_delta(Delta(request_id="r", num_tokens=2, index=0, text="a")),
    ]
    call = ToolCallDelta(index=0, id="call_1", name="now", arguments="{")
    chunks += stream.encode_delta(Delta(request_id="r", num_tokens=3, index=0, tool_calls=[call]))
    more = ToolCallDelta(index=0, arguments="}")
    chunks += stream.encode_delta(Delta(request_id="r", num_tokens=4, index=0, tool_calls=[more]))
    chunks += stream.encode_end(
        finished(
            Choice(reason=FinishReason.TOOL_CALLS, text="a", index=0),
            Choice(reason=FinishReason.STOP, text="b", index=1),
            Choice(reason=FinishReason.STOP, text="", index=2),
        )
    )
    first, second, third = added_up(chunks)
    assert (first["content"], first["reasoning"], first["reason"]) == ("a", "hm", "tool_calls")
    assert first["calls"] == {0: ["call_1", "now", "{}"]}
    assert [each["token"] for each in first["logprobs"]] == ["é"]
    assert (second["content"], second["reason"]) == ("b", "stop")
    assert (third["content"], third["reason"]) == ("", "stop")


def test_usage_is_the_last_chunk_and_only_if_requested() -> None:
    end = finished(Choice(reason=FinishReason.STOP, text=""))
    assert all("usage" not in json.loads(chunk) for chunk in encoder().encode_end(end))
    *chunks, last = [json.loads(chunk) for chunk in encoder(include_usage=True).encode_end(end)]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


def test_a_stored_answer_is_streamed_as_it_would_have_been_live() -> None:
    choices = [
        Choice(reason=FinishReason.TOOL_CALLS, text="", reasoning="hm", tool_calls=[NOW], logprobs=[LIKELY]),
        Choice(reason=FinishReason.STOP, text="hello", index=1, logprobs=[]),
    ]
    live = encoder()
    call = ToolCallDelta(index=0, id=NOW.id, name=NOW.name, arguments=NOW.arguments)
    chunks = live.encode_delta(
        Delta(request_id="r", num_tokens=1, reasoning="hm", tool_calls=[call], logprobs=[LIKELY], index=0)
    )
    chunks += live.encode_delta(Delta(request_id="r", num_tokens=1, index=1, text="hello"))
    chunks += live.encode_end(finished(*choices))
    stored = chat_completion(HEADER, finished(*choices))
    assert added_up(chunks_of(stored, include_usage=False)) == added_up(chunks)
    assert json.loads(chunks_of(stored, include_usage=True)[-1])["usage"]["total_tokens"] == 12


def chat(kind: str) -> ChatRequest:
    messages = [{"role": "user", "content": "hello"}]
    return ChatRequest.model_validate({"model": "m", "messages": messages, "response_format": {"type": kind}})


def test_a_structured_answer_that_was_cut_off_is_a_problem_and_free_text_is_not() -> None:
    structured = chat("json_object")
    cut = finished(Choice(reason=FinishReason.STOP, text="{}"), Choice(reason=FinishReason.LENGTH, text="{", index=1))
    problem = truncated_problem(cut, structured)
    assert problem is not None
    assert (problem.status, problem.code) == (422, "incomplete_output")
    assert "max_tokens" in problem.message
    assert truncated_problem(cut, chat("text")) is None
    assert truncated_problem(finished(Choice(reason=FinishReason.STOP, text="{}")), structured) is None


def must_call(choice: object) -> ChatRequest:
    tool = {"type": "function", "function": {"name": "now", "parameters": {}}}
    messages = [{"role": "user", "content": "hello"}]
    return ChatRequest.model_validate({"model": "m", "messages": messages, "tools": [tool], "tool_choice": choice})


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "now"}}], ids=["any", "named"]
)
def test_an_answer_that_had_to_call_a_tool_and_was_cut_before_is_a_problem(choice: object) -> None:
    whole, half = ToolCall(id="1", name="now", arguments='{"a": 1}'), ToolCall(id="2", name="now", arguments='{"a')
    for calls in ([], [half]):
        cut = finished(Choice(reason=FinishReason.LENGTH, text="", tool_calls=calls))
        problem = truncated_problem(cut, must_call(choice))
        assert problem is not None
        assert (problem.status, problem.code) == (422, "incomplete_output")
        assert "tool_choice" in problem.message
        assert truncated_problem(cut, must_call("auto")) is None
    called = finished(Choice(reason=FinishReason.LENGTH, text="", tool_calls=[whole, half]))
    assert truncated_problem(called, must_call(choice)) is None


def test_the_system_fingerprint_changes_with_each_of_its_parts() -> None:
    parts = {"build": "b", "model_hash": "m", "settings_hash": "s", "template_hash": "t"}
    others = [system_fingerprint(**{**parts, name: "other"}) for name in parts]
    assert len({system_fingerprint(**parts), *others}) == 1 + len(parts)
    assert system_fingerprint(**parts) == system_fingerprint(**parts)
