"""What a chat body may hold, and what a client is told when it may not."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import ApiError
from core.wire.chat import ChatRequest
from core.wire.validation import parse_body

HELLO = [{"role": "user", "content": "hello"}]


def body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": HELLO, **more}


BAD: dict[str, tuple[Any, str, str | None]] = {
    "not an object": ([], "invalid_json", None),
    "no model": ({"messages": HELLO}, "missing_required_parameter", "model"),
    "no messages": ({"model": "m"}, "missing_required_parameter", "messages"),
    "no message": (body(messages=[]), "invalid_value", "messages"),
    "messages as text": (body(messages="hello"), "invalid_type", "messages"),
    "an unknown role": (body(messages=[{"role": "king", "content": "x"}]), "invalid_value", "messages[0].role"),
    "content as a number": (body(messages=[{"role": "user", "content": 5}]), "invalid_type", "messages[0].content"),
    "no content": (body(messages=[{"role": "user"}]), "invalid_value", "messages[0]"),
    "an image": (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        "unsupported_parameter",
        "messages[0].content",
    ),
    "a temperature as text": (body(temperature="0.5"), "invalid_type", "temperature"),
    "a temperature out of range": (body(temperature=2.1), "invalid_value", "temperature"),
    "max_tokens of zero": (body(max_tokens=0), "invalid_value", "max_tokens"),
    "max_tokens as a fraction": (body(max_tokens=1.5), "invalid_type", "max_tokens"),
    "an empty stop string": (body(stop=""), "invalid_value", "stop"),
    "five stop strings": (body(stop=list("abcde")), "invalid_value", "stop"),
    "a huge seed": (body(seed=2**70), "invalid_value", "seed"),
    "n of two": (body(n=2), "unsupported_parameter", "n"),
    "logprobs": (body(logprobs=True), "unsupported_parameter", "logprobs"),
    "tools": (body(tools=[{"type": "function"}]), "unsupported_parameter", "tools"),
    "a template of one's own": (body(chat_template="{{ 7*7 }}"), "unsupported_parameter", "chat_template"),
    "a grammar": (body(grammar="root ::= x"), "unsupported_parameter", "grammar"),
    "stream_options without stream": (body(stream_options={"include_usage": True}), "invalid_value", None),
    "stream as text": (body(stream="yes"), "invalid_type", "stream"),
}


@pytest.mark.parametrize(("value", "code", "param"), BAD.values(), ids=BAD.keys())
def test_a_bad_body_is_a_400_that_names_the_field(value: Any, code: str, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(ChatRequest, value)
    problem = caught.value.problem
    assert (problem.status, problem.code, problem.param) == (400, code, param)


def test_a_complaint_does_not_repeat_the_value() -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(ChatRequest, body(messages=[{"role": "my secret", "content": "x"}]))
    assert "my secret" not in caught.value.problem.message


GOOD: dict[str, dict[str, Any]] = {
    "parts of text": body(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}]}]),
    "a developer message": body(messages=[{"role": "developer", "content": "x"}, *HELLO]),
    "switches that are off": body(n=1, logprobs=False, tools=[], tool_choice="auto", response_format={"type": "text"}),
    "nulls": body(temperature=None, stop=None, seed=None, stream=None, stream_options=None, n=None, tools=None),
    "fields nobody knows": body(user="u", metadata={"a": "b"}, store=True, service_tier="auto", brand_new=1),
    "whole numbers as floats": body(temperature=1, top_p=1),
    "a turn that called a tool": body(messages=[*HELLO, {"role": "assistant", "tool_calls": [{"id": "x"}]}]),
}


@pytest.mark.parametrize("value", GOOD.values(), ids=GOOD.keys())
def test_what_openai_accepts_and_we_can_do_is_accepted(value: dict[str, Any]) -> None:
    parse_body(ChatRequest, value)


def test_text_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = parse_body(ChatRequest, body(messages=[{"role": "user", "content": parts}]))
    assert chat.messages[0].text() == "ab"
