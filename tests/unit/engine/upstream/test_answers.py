"""Answers of servers become the engine's values."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from engine.types import Finished, FinishReason, TokenLogprob, ToolCall, ToolCallDelta, Usage
from engine.upstream.answers import Collector, embedded
from engine.upstream.bodies import read_body
from engine.upstream.trouble import Broken, Refused


def whole(document: dict[str, Any]) -> Finished:
    collector = Collector("r")
    collector.add(read_body(json.dumps(document).encode()), is_whole=True)
    return collector.finished()


def message(finish: str | None = "stop", **fields: Any) -> Finished:
    return whole({"choices": [{"index": 0, "message": fields, "finish_reason": finish}]})


def chunks(*deltas: dict[str, Any], finish: str = "stop") -> tuple[Collector, list]:
    collector, seen = Collector("r"), []
    for delta in deltas:
        seen += collector.add(read_body(json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()))
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    collector.add(read_body(json.dumps(end).encode()))
    return collector, seen


def test_a_chat_keeps_text_usage_and_cached_and_reasoning_tokens() -> None:
    finished = whole(
        {
            "id": "x",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "length"}],
            "usage": {
                "prompt_tokens": 5,
                "completion_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": None},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        }
    )
    assert (finished.text, finished.reason) == ("hi", FinishReason.LENGTH)
    assert finished.usage == Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=3, reasoning_tokens=2)


def test_an_answer_without_usage_counts_no_tokens_and_a_stream_those_of_its_chunks() -> None:
    assert message(content="hi").usage == Usage(prompt_tokens=0, completion_tokens=0)
    collector, _ = chunks({"role": "assistant"}, {"reasoning": "hm"}, {"content": "a"}, {"content": "b"})
    assert collector.finished().usage == Usage(prompt_tokens=0, completion_tokens=3)


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}])
def test_usage_may_lack_its_details(details: dict | None) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": None, "prompt_tokens_details": details}
    choice = {"message": {"content": "hi"}, "finish_reason": "stop"}
    assert whole({"choices": [choice], "usage": usage}).usage == Usage(prompt_tokens=5, completion_tokens=0)


@pytest.mark.parametrize(
    ("prompt", "completion", "cached", "counted"),
    [(5, -7, 9, (5, 0, 5)), (-1, 1 << 70, 1 << 70, (0, 1 << 30, 0)), (1 << 40, 1, -3, (1 << 30, 1, 0))],
)
def test_counts_that_cannot_be_are_limited(
    prompt: int, completion: int, cached: int, counted: tuple[int, int, int]
) -> None:
    details = {"cached_tokens": cached}
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    found = whole({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage}).usage
    assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens) == counted


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_has_two_names(name: str) -> None:
    assert message(content="hi", **{name: "hm"}).choices[0].reasoning == "hm"


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, ""), ([{"type": "text", "text": "a"}, {"type": "thinking"}, {"type": "text", "text": "b"}], "ab")],
)
def test_content_may_be_null_or_parts(content: object, text: str) -> None:
    assert message(content=content).text == text


def test_a_refusal_is_the_text_of_an_answer_that_has_no_other() -> None:
    assert message(content=None, refusal="no").text == "no"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("tool_calls", FinishReason.TOOL_CALLS),
        ("function_call", FinishReason.TOOL_CALLS),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("max_tokens", FinishReason.LENGTH),
        ("eos_token", FinishReason.STOP),
        (None, FinishReason.STOP),
    ],
)
def test_finish_reasons_are_those_of_openai(given: str | None, reason: FinishReason) -> None:
    assert message(given, content="hi").reason is reason


def test_an_answer_that_the_server_aborted_is_broken() -> None:
    with pytest.raises(Broken, match="abort"):
        message("abort", content="hi")


def test_the_choices_are_ordered_by_their_index() -> None:
    choices = [
        {"index": index, "text": text, "finish_reason": "stop"} for index, text in ((2, "c"), (0, "a"), (1, "b"))
    ]
    assert [choice.text for choice in whole({"choices": choices}).choices] == ["a", "b", "c"]


def test_tool_calls_are_kept() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1.50}'}}
    finished = message("tool_calls", content=None, tool_calls=[call])
    assert finished.choices[0].tool_calls == [ToolCall(id="c1", name="look", arguments='{"at": 1.50}')]


def test_arguments_may_be_an_object() -> None:
    call = {"id": "c1", "function": {"name": "look", "arguments": {"at": 1}}}
    assert message(tool_calls=[call]).choices[0].tool_calls[0].arguments == '{"at":1}'


def test_a_function_call_of_the_old_form_is_a_tool_call() -> None:
    finished = message("function_call", function_call={"name": "look", "arguments": "{}"})
    assert finished.choices[0].tool_calls == [ToolCall(id="call_0", name="look", arguments="{}")]


def test_the_parts_of_tool_calls_are_joined() -> None:
    collector, deltas = chunks(
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "look", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]},
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "look", "arguments": ":1}"}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "go", "arguments": "{}"}}]},
        finish="tool_calls",
    )
    assert collector.finished().choices[0].tool_calls == [
        ToolCall(id="a", name="look", arguments='{"x":1}'),
        ToolCall(id="b", name="go", arguments="{}"),
    ]
    assert [delta.tool_calls[0] for delta in deltas] == [
        ToolCallDelta(index=0, id="a", name="look"),
        ToolCallDelta(index=0, arguments='{"x"'),
        ToolCallDelta(index=0, arguments=":1}"),
        ToolCallDelta(index=1, id="b", name="go", arguments="{}"),
    ]


def test_tool_calls_in_chunks_may_lack_their_index() -> None:
    collector, _ = chunks(
        {"tool_calls": [{"id": "a", "function": {"name": "look", "arguments": "{}"}}]},
        {"tool_calls": [{"id": "b", "function": {"name": "go", "arguments": '{"x":'}}]},
        {"tool_calls": [{"function": {"arguments": "1}"}}]},
    )
    assert [call.arguments for call in collector.finished().choices[0].tool_calls] == ["{}", '{"x":1}']


def test_logprobs_of_a_chat_keep_bytes_and_alternatives() -> None:
    half = {"token": "\ufffd", "logprob": -1.5, "bytes": [0xE2, 0x82], "top_logprobs": []}
    top = {"token": "b", "logprob": -2.0, "bytes": None}
    full = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [top]}
    finished = whole({"choices": [{"message": {"content": "€"}, "logprobs": {"content": [half, full]}}]})
    assert finished.choices[0].logprobs == [
        TokenLogprob(piece=b"\xe2\x82", logprob=-1.5),
        TokenLogprob(piece=b"a", logprob=-0.5, top=[TokenLogprob(piece=b"b", logprob=-2.0)]),
    ]


def test_logprobs_of_a_text_completion_are_kept() -> None:
    logprobs = {
        "tokens": ["a", "b"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"b": -0.5, "c": -1.0}],
        "text_offset": [0, 1],
    }
    finished = whole({"choices": [{"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "stop"}]})
    assert finished.choices[0].logprobs == [
        TokenLogprob(piece=b"a", logprob=0.0),
        TokenLogprob(
            piece=b"b",
            logprob=-0.5,
            top=[TokenLogprob(piece=b"b", logprob=-0.5), TokenLogprob(piece=b"c", logprob=-1.0)],
        ),
    ]


def test_an_answer_without_logprobs_has_none() -> None:
    assert message(content="hi").choices[0].logprobs is None


def test_half_an_answer_is_broken() -> None:
    collector = Collector("r")
    collector.add(read_body(b'{"choices": [{"index": 0, "delta": {"content": "hi"}}]}'))
    with pytest.raises(Broken, match="half an answer"):
        collector.finished()


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"choices": 1}', b'{"choices": [{"index": "a"}]}', b"\xff"])
def test_what_is_no_answer_is_broken(body: bytes) -> None:
    with pytest.raises(Broken, match="no JSON of an answer"):
        read_body(body)


def test_an_answer_without_choices_is_broken() -> None:
    with pytest.raises(Broken):
        whole({"object": "chat.completion"})


def test_an_error_inside_an_answer_is_broken_with_its_words() -> None:
    with pytest.raises(Broken, match="out of memory") as caught:
        read_body(b'{"error": {"message": "out of memory", "code": 507, "type": "server_error"}}')
    assert (caught.value.problem.status, caught.value.problem.kind) == (507, "server_error")


def test_an_error_inside_an_answer_that_names_the_request_is_not_tried_again() -> None:
    with pytest.raises(Refused, match="too long"):
        read_body(b'{"error": {"message": "too long", "code": 400}}')


def test_vectors_are_in_the_order_of_their_index() -> None:
    floats = [[1.0, 0.5], [0.25, -2.0]]
    data = [{"index": 1, "embedding": floats[1]}, {"index": 0, "embedding": floats[0]}]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    answer = embedded("r", read_body(json.dumps({"data": data, "usage": usage}).encode()))
    assert [list(struct.unpack("<2f", vector)) for vector in answer.vectors] == floats
    assert answer.usage == Usage(prompt_tokens=4, completion_tokens=0)


def test_vectors_may_be_base64() -> None:
    vector = struct.pack("<2f", 1.0, 0.5)
    body = read_body(json.dumps({"data": [{"embedding": base64.b64encode(vector).decode()}]}).encode())
    assert embedded("r", body).vectors == [vector]


@pytest.mark.parametrize("body", [b"{}", b'{"data": [{"embedding": "%"}]}'])
def test_vectors_that_are_missing_or_wrong_are_broken(body: bytes) -> None:
    with pytest.raises(Broken):
        embedded("r", read_body(body))
