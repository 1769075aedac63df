"""Responses requests: their chat bodies, and refused fields."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import ApiError, Problem
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from core.schemas.responses.chat import as_responses_problem, chat_body_of, input_items
from core.schemas.responses.items import items_from_json, items_to_json, with_ids
from core.schemas.responses.request import ResponsesRequest

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "4"}
IMAGE = {"type": "input_image", "image_url": "data:,"}


def request(**more: Any) -> ResponsesRequest:
    return parse_body(ResponsesRequest, {"model": "m", "input": "hello", **more})


def messages(*items: Any, **more: Any) -> Any:
    body = chat_body_of(request(input=list(items), **more))
    parse_body(ChatRequest, body)
    return body["messages"]


def test_a_text_is_a_users_message_and_instructions_come_first() -> None:
    body = chat_body_of(request(instructions="Be brief."))
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello"},
    ]


def test_reasoning_text_and_calls_are_one_turn_and_their_outputs_follow() -> None:
    thought = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]}
    user = {"role": "user", "content": [{"type": "input_text", "text": "2+"}, {"type": "input_text", "text": "2?"}]}
    turn = messages(user, thought, said, CALL, {**CALL, "call_id": "d"}, RESULT, {**RESULT, "call_id": "d"})
    assert [message["role"] for message in turn] == ["user", "assistant", "tool", "tool"]
    assert turn[0]["content"] == [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    assert (turn[1]["content"], turn[1]["reasoning_content"]) == ("Let me see.", "hm")
    assert [call["id"] for call in turn[1]["tool_calls"]] == ["c", "d"]
    assert turn[2] == {"role": "tool", "tool_call_id": "c", "content": "4"}


def test_parts_of_a_result_or_of_a_thought_are_lines() -> None:
    result = {**RESULT, "output": [{"type": "input_text", "text": text} for text in ("a", "b")]}
    assert messages({"role": "user", "content": "x"}, CALL, result)[-1]["content"] == "a\nb"
    thoughts = [{"type": "reasoning_text", "text": text} for text in ("hm", "so")]
    thought = {"type": "reasoning", "summary": [], "content": thoughts}
    assert messages(thought, thought)[0]["reasoning_content"] == "hm\nso\nhm\nso"


def test_two_answers_in_a_row_are_two_turns() -> None:
    said = {"role": "assistant", "content": "one"}
    assert [message["content"] for message in messages(said, {**said, "content": "two"})] == ["one", "two"]


def test_the_dump_of_an_sdk_answer_can_be_sent_back() -> None:
    dumped = {"id": "msg", "type": "message", "role": "assistant", "status": None, "phase": None}
    part = {"type": "output_text", "text": "b", "annotations": [], "logprobs": None}
    refusal = {"type": "refusal", "refusal": "No."}
    parts = messages({**dumped, "content": [part, refusal]})[0]["content"]
    assert [part["text"] for part in parts] == ["b", "No."]
    thought = {"type": "reasoning", "id": "rs", "summary": [], "content": None, "encrypted_content": "x"}
    assert messages(thought, {"role": "user", "content": "go on"})[-1]["content"] == "go on"


def test_schemas_tools_and_limits_are_those_of_chat() -> None:
    schema = {"type": "object", "properties": {}}
    tools = [{"type": "function", "name": name, "parameters": schema, "strict": True} for name in ("a", "b")]
    body = chat_body_of(
        request(
            text={"format": {"type": "json_schema", "name": "s", "schema": schema, "strict": True}},
            tools=tools,
            tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]},
            max_output_tokens=7,
            reasoning={"effort": "low"},
            include=["message.output_text.logprobs"],
        )
    )
    parse_body(ChatRequest, body)
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "s", "schema": schema, "strict": True},
    }
    assert [tool["function"]["name"] for tool in body["tools"]] == ["b"]
    assert (body["tool_choice"], body["max_completion_tokens"], body["reasoning_effort"]) == ("required", 7, "low")
    assert (body["logprobs"], body["top_logprobs"]) == (True, 0)
    named = chat_body_of(request(tools=tools, tool_choice={"type": "function", "name": "a"}))
    assert named["tool_choice"] == {"type": "function", "function": {"name": "a"}}


def test_kept_items_read_back_as_they_were() -> None:
    items = with_ids(input_items(request(input=[{"role": "user", "content": "a"}, CALL, RESULT])), "0")
    assert items_from_json(items_to_json(items)) == items
    assert [item.id for item in items] == ["msg_0_0", "fc_0_1", "fco_0_2"]


BAD = {
    "no input": ({"input": None}, "invalid_type", "input"),
    "an empty input": ({"input": []}, "invalid_value", "input"),
    "an image": (
        {"input": [{"role": "user", "content": [IMAGE]}]},
        "unsupported_parameter",
        "input[0].content",
    ),
    "a file": (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        "unsupported_parameter",
        "input[0].content",
    ),
    "an image as a call's output": (
        {"input": [CALL, {**RESULT, "output": [IMAGE]}]},
        "unsupported_parameter",
        "input[1].output",
    ),
    "a reference": ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_parameter", "input[0]"),
    "an item of a hosted tool": ({"input": [{"type": "web_search_call"}]}, "unsupported_parameter", "input[0]"),
    "an output without its call": ({"input": [RESULT]}, "invalid_value", "input"),
    "an unknown role": ({"input": [{"role": "robot", "content": ""}]}, "invalid_value", "input[0].role"),
    "a hosted tool": ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0]"),
    "the choice of one": ({"tool_choice": {"type": "file_search"}}, "unsupported_parameter", "tool_choice"),
    "a schema without a name": (
        {"text": {"format": {"type": "json_schema", "schema": {}}}},
        "invalid_value",
        "text.format",
    ),
    "a template of one's own": ({"chat_template": "{{ 7*7 }}"}, "unsupported_parameter", "chat_template"),
    "an unknown effort": ({"reasoning": {"effort": "huge"}}, "invalid_value", "reasoning.effort"),
    "a conversation": ({"conversation": "conv_1"}, "unsupported_parameter", "conversation"),
    "a prompt template": ({"prompt": {"id": "p"}}, "unsupported_parameter", "prompt"),
    "background and not stored": ({"background": True, "store": False}, "unsupported_parameter", "store"),
    "background without state": ({"background": True}, "unsupported_parameter", "background"),
    "a previous one without state": ({"previous_response_id": "r"}, "unsupported_parameter", "previous_response_id"),
    "too much metadata": ({"metadata": {str(key): "" for key in range(17)}}, "invalid_value", "metadata"),
    "a limit of chat": ({"max_tokens": 5}, "unsupported_parameter", "max_tokens"),
    "a limit of llama.cpp": ({"n_predict": 5}, "unsupported_parameter", "n_predict"),
    "a limit of minus two": ({"max_output_tokens": -2}, "invalid_value", "max_output_tokens"),
    "too hot": ({"temperature": 3}, "invalid_value", "temperature"),
}


@pytest.mark.parametrize(("fields", "code", "param"), BAD.values(), ids=BAD.keys())
def test_a_refusal_names_the_field_and_the_reason(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat_body_of(request(**fields))
    problem = caught.value.problem
    assert (problem.status, problem.code, problem.param) == (400, code, param)


@pytest.mark.parametrize(
    ("param", "ours"),
    [
        ("messages", "input"),
        ("messages[3].content", "input"),
        ("response_format.json_schema.schema", "text.format.schema"),
        ("tools[1].function.parameters", "tools[1].parameters"),
        ("max_tokens", "max_output_tokens"),
        ("temperature", "temperature"),
    ],
)
def test_an_error_of_the_chat_body_names_the_field_that_was_sent(param: str, ours: str) -> None:
    problem = as_responses_problem(Problem(status=400, message=f"Invalid value for '{param}': no.", param=param))
    assert (problem.param, problem.message) == (ours, f"Invalid value for '{ours}': no.")
