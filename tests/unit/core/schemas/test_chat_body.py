"""Chat bodies: accepted fields, and the errors of all others."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import ApiError
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest

HELLO = [{"role": "user", "content": "hello"}]
BEGUN = [*HELLO, {"role": "assistant", "content": "Well,"}]


def body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": HELLO, **more}


def tool(name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters or {"type": "object"}}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


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
    "max_tokens of minus two": (body(max_tokens=-2), "invalid_value", "max_tokens"),
    "top_k of minus two": (body(top_k=-2), "invalid_value", "top_k"),
    "max_tokens as a fraction": (body(max_tokens=1.5), "invalid_type", "max_tokens"),
    "an empty stop string": (body(stop=""), "invalid_value", "stop"),
    "too many stop strings": (body(stop=["x"] * 129), "invalid_value", "stop"),
    "a huge seed": (body(seed=2**70), "invalid_value", "seed"),
    "no answer": (body(n=0), "invalid_value", "n"),
    "too many answers": (body(n=17), "invalid_value", "n"),
    "top_logprobs without logprobs": (body(top_logprobs=3), "invalid_value", "top_logprobs"),
    "too many top_logprobs": (body(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
    "logprobs as in the legacy endpoint": (body(logprobs=3), "invalid_type", "logprobs"),
    "a typical_p of zero": (body(typical_p=0), "invalid_value", "typical_p"),
    "a bias that is too strong": (body(logit_bias={"1": 101}), "invalid_value", "logit_bias"),
    "a bias of no token": (body(logit_bias={"-1": 1}), "invalid_value", "logit_bias"),
    "a bias of a word": (body(logit_bias={"yes": 1}), "invalid_value", "logit_bias.yes"),
    "too many biases": (body(logit_bias={str(n): 1 for n in range(301)}), "invalid_value", "logit_bias"),
    "a tool that is no function": (body(tools=[{"type": "custom"}]), "unsupported_parameter", "tools[0]"),
    "a function without a name": (
        body(tools=[{"type": "function", "function": {}}]),
        "missing_required_parameter",
        "tools[0].function.name",
    ),
    "a function with a bad name": (body(tools=[tool("a b")]), "invalid_value", "tools[0].function.name"),
    "a function with a long name": (body(tools=[tool("a" * 65)]), "invalid_value", "tools[0].function.name"),
    "a function of a list": (
        body(tools=[tool("a", {"type": "array"})]),
        "invalid_value",
        "tools[0].function.parameters",
    ),
    "a schema without a bottom": (
        body(tools=[tool("a", nested(40))]),
        "invalid_value",
        "tools[0].function.parameters",
    ),
    "two tools of one name": (body(tools=[tool("a"), tool("a")]), "invalid_value", "tools"),
    "too many tools": (body(tools=[tool(f"t{n}") for n in range(129)]), "invalid_value", "tools"),
    "schemas that are too large": (
        body(tools=[tool("a", {"description": "x" * 40_000}), tool("b", {"description": "x" * 40_000})]),
        "invalid_value",
        "tools",
    ),
    "a choice of an unknown tool": (
        body(tools=[tool("a")], tool_choice={"type": "function", "function": {"name": "b"}}),
        "invalid_value",
        "tool_choice",
    ),
    "a choice of nobody knows what": (body(tools=[tool("a")], tool_choice="any"), "invalid_value", "tool_choice"),
    "a choice among other tools": (
        body(tools=[tool("a")], tool_choice={"type": "allowed_tools"}),
        "unsupported_parameter",
        "tool_choice",
    ),
    "a choice without a name": (
        body(tools=[tool("a")], tool_choice={"type": "function", "function": {}}),
        "missing_required_parameter",
        "tool_choice.function.name",
    ),
    "a required tool without tools": (body(tool_choice="required"), "invalid_value", "tool_choice"),
    "legacy functions": (body(functions=[{"name": "a"}]), "unsupported_parameter", "functions"),
    "a legacy choice": (body(function_call={"name": "a"}), "unsupported_parameter", "function_call"),
    "a template of one's own": (body(chat_template="{{ 7*7 }}"), "unsupported_parameter", "chat_template"),
    "a grammar of llama.cpp's": (body(grammar="root ::= x"), "unsupported_parameter", "grammar"),
    "a penalty by another name": (body(repetition_penalty=1.1), "unsupported_parameter", "repetition_penalty"),
    "an end for the text": (body(suffix="x"), "unsupported_parameter", "suffix"),
    "an echo": (body(echo=True), "unsupported_parameter", "echo"),
    "documents of a template": (body(documents=[{"title": "a", "text": "b"}]), "unsupported_parameter", "documents"),
    "a search": (body(web_search_options={}), "unsupported_parameter", "web_search_options"),
    "a list for the template": (body(chat_template_kwargs={"a": []}), "invalid_type", "chat_template_kwargs.a"),
    "a novel for the template": (
        body(chat_template_kwargs={"a": "x" * 257}),
        "invalid_value",
        "chat_template_kwargs.a",
    ),
    "a key as long as a novel": (body(logit_bias={"k" * 50_000: 1}), "invalid_value", "logit_bias"),
    "an empty stop string of several": (body(stop=["a", ""]), "invalid_value", "stop[1]"),
    "a part that is no object": (
        body(messages=[{"role": "user", "content": [5]}]),
        "invalid_type",
        "messages[0].content[0]",
    ),
    "a part without text": (
        body(messages=[{"role": "user", "content": [{"type": "text"}]}]),
        "missing_required_parameter",
        "messages[0].content[0].text",
    ),
    "a user without content": (body(messages=[{"role": "user", "content": None}]), "invalid_value", "messages[0]"),
    "a user's message that goes on": (body(continue_final_message=True), "invalid_value", "continue_final_message"),
    "an answer that goes on in a new turn": (
        body(messages=BEGUN, continue_final_message=True, add_generation_prompt=True),
        "invalid_value",
        "continue_final_message",
    ),
    "two constraints": (
        body(response_format={"type": "json_object"}, structured_outputs={"regex": "a"}),
        "invalid_value",
        "structured_outputs",
    ),
    "stream_options without stream": (
        body(stream_options={"include_usage": True}),
        "invalid_value",
        "stream_options",
    ),
    "stream as text": (body(stream="yes"), "invalid_type", "stream"),
}


@pytest.mark.parametrize(("value", "code", "param"), BAD.values(), ids=BAD.keys())
def test_a_bad_body_is_a_400_that_names_the_field(value: Any, code: str, param: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(ChatRequest, value)
    problem = caught.value.problem
    assert (problem.status, problem.code, problem.param) == (400, code, param)


@pytest.mark.parametrize("name", ["response_format", "structured_outputs", "stream_options", "logit_bias"])
def test_an_error_names_types_of_json_not_of_python(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(ChatRequest, body(stream=True, **{name: 5}))
    assert caught.value.problem.message == f"Invalid value for '{name}': Input should be an object."


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("guided_json", {"type": "object"}, "structured_outputs"),
        ("functions", [{"name": "a"}], "tools"),
        ("repetition_penalty", 1.1, "repeat_penalty"),
        ("n_predict", 5, "max_tokens"),
        ("num_predict", -1, "max_tokens"),
        ("max_new_tokens", 5, "max_tokens"),
        ("max_output_tokens", 5, "max_tokens"),
        ("grammar", "root ::= [0-9]", "structured_outputs"),
    ],
)
def test_an_error_names_the_field_to_use_instead(name: str, value: Any, instead: str) -> None:
    with pytest.raises(ApiError, match=f"use '{instead}'"):
        parse_body(ChatRequest, body(**{name: value}))


def test_an_error_does_not_repeat_the_value() -> None:
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
    "several answers with likelihoods": body(n=16, logprobs=True, top_logprobs=20, typical_p=1),
    "words for the template": body(chat_template_kwargs={"enable_thinking": False, "effort": "low", "budget": 5}),
    "what other servers know, switched off": body(suffix=None, echo=False, best_of=1, repetition_penalty=1.0),
    "what clients of llama.cpp and vLLM send for nothing": body(
        grammar="", json_schema="", guided_json="", guided_regex="", guided_choice=[], guided_grammar=""
    ),
    "no limits": body(max_tokens=-1, max_completion_tokens=-1, top_k=-1),
    "many stop strings": body(stop=[f"<{n}>" for n in range(128)]),
    "biases": body(logit_bias={"0": -100, "151643": 2.5}),
    "tools": body(
        tools=[tool("a", nested(30)), {"type": "function", "function": {"name": "b-_9", "strict": True}}],
        tool_choice={"type": "function", "function": {"name": "b-_9"}},
        parallel_tool_calls=False,
    ),
    "as many tools as there may be": body(tools=[tool(f"t{n}") for n in range(128)], tool_choice="required"),
    "effort, which nobody can ask for": body(reasoning_effort="low"),
    "a turn without a word": body(messages=[*HELLO, {"role": "assistant", "content": None}, *HELLO]),
    "an answer that goes on": body(messages=BEGUN, continue_final_message=True, add_generation_prompt=False),
    "a prompt without a new turn": body(add_generation_prompt=False),
    "a turn that called a tool": body(messages=[*HELLO, {"role": "assistant", "tool_calls": [{"id": "x"}]}]),
}


@pytest.mark.parametrize("value", GOOD.values(), ids=GOOD.keys())
def test_what_openai_accepts_and_we_can_do_is_accepted(value: dict[str, Any]) -> None:
    assert parse_body(ChatRequest, value).model == value["model"]


def test_text_parts_are_lines_of_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = parse_body(ChatRequest, body(messages=[{"role": "user", "content": parts}]))
    assert chat.messages[0].text() == "a\nb"
