"""Tools through the official client, plain and streamed. On the demo model, which was never trained for tools: the grammar alone
decides the tool and its arguments."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

HELLO: Any = [{"role": "user", "content": "What is the capital of France?"}]


class Capital(BaseModel):
    """Looks up a capital."""

    country: Literal["France", "Italy"]


CAPITAL: Any = openai.pydantic_function_tool(Capital, name="capital")
NOW: Any = {"type": "function", "function": {"name": "now"}}
NAMED: Any = {"type": "function", "function": {"name": "capital"}}
NEVER_END = {"1021": -100, "1023": -100}  # the two stop tokens of the demo model


def ask(demo: OpenAI, **more: Any) -> Any:
    request: dict[str, Any] = {"model": "caller", "messages": HELLO, "tools": [NOW, CAPITAL], "max_tokens": 150, **more}
    return demo.chat.completions.create(**request)


def calls_of(answer: Any) -> list[tuple[str, Any]]:
    """The name and arguments of each call."""
    calls = answer.choices[0].message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_a_named_tool_is_called_with_arguments_that_parse(demo: OpenAI) -> None:
    answer = demo.chat.completions.parse(
        model="caller", messages=HELLO, tools=[CAPITAL], tool_choice=NAMED, parallel_tool_calls=False
    )
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls or []
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert isinstance(call.function.parsed_arguments, Capital)
    assert call.id.startswith("call_")


def test_required_calls_one_of_the_tools(demo: OpenAI) -> None:
    answer = ask(demo, tool_choice="required", parallel_tool_calls=False)
    ((name, arguments),) = calls_of(answer)
    assert name in ("capital", "now")
    assert set(arguments) == ({"country"} if name == "capital" else set())


def test_auto_may_answer_without_a_call(demo: OpenAI) -> None:
    for choice in ("auto", None):
        answer = ask(demo, **{} if choice is None else {"tool_choice": choice})
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content
        assert answer.choices[0].message.tool_calls is None


def test_none_is_as_if_there_were_no_tools(demo: OpenAI) -> None:
    answer, plain = ask(demo, tool_choice="none"), ask(demo, tools=openai.omit)
    assert answer.choices[0].message == plain.choices[0].message
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens


def test_a_model_that_would_go_on_calling_makes_one_call_where_parallel_ones_are_off(demo: OpenAI) -> None:
    request = {"tool_choice": "required", "tools": [CAPITAL], "logit_bias": NEVER_END}
    several = ask(demo, parallel_tool_calls=True, **request)
    assert len(several.choices[0].message.tool_calls) > 1
    assert len({call.id for call in several.choices[0].message.tool_calls}) > 1
    assert len(calls_of(ask(demo, parallel_tool_calls=False, **request))) == 1


def test_a_named_tool_is_called_once_even_where_parallel_calls_are_on(demo: OpenAI) -> None:
    answer = ask(demo, tool_choice=NAMED, parallel_tool_calls=True, logit_bias=NEVER_END)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert len(calls_of(answer)) == 1


@pytest.mark.parametrize("parallel", [False, True])
def test_streamed_calls_add_up_to_the_plain_ones(demo: OpenAI, parallel: bool) -> None:
    request: Any = {"tool_choice": NAMED, "parallel_tool_calls": parallel, "max_tokens": 60 if parallel else 150}
    plain = ask(demo, **request)
    added: list[list[str]] = []
    for chunk in ask(demo, stream=True, **request):
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.index == len(added):
                assert (delta.type, bool(delta.id)) == ("function", True), "a call's first delta says what it is"
                added.append([delta.function.name, ""])
            added[delta.index][1] += delta.function.arguments
        reason = chunk.choices[0].finish_reason
    calls = plain.choices[0].message.tool_calls
    assert added == [[call.function.name, call.function.arguments] for call in calls]
    assert reason == plain.choices[0].finish_reason


def test_the_clients_own_stream_parses_the_arguments(demo: OpenAI) -> None:
    with demo.chat.completions.stream(
        model="caller", messages=HELLO, tools=[CAPITAL], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        kinds = [event.type for event in stream]
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert kinds.count("tool_calls.function.arguments.done") == 1
    assert isinstance(call.function.parsed_arguments, Capital)


def test_the_result_of_a_call_is_answered_in_a_second_turn(demo: OpenAI) -> None:
    first = demo.chat.completions.create(
        model="caller", messages=HELLO, tools=[CAPITAL], tool_choice=NAMED, parallel_tool_calls=False
    )
    (call,) = first.choices[0].message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "What is the capital of Italy?"}
    turns: Any = [*HELLO, first.choices[0].message, result]
    second = demo.chat.completions.create(model="caller", messages=turns, tools=[CAPITAL], tool_choice="none")
    assert second.choices[0].message.content == "The capital of Italy is Rome."


def test_tools_and_a_structured_answer_go_together(demo: OpenAI) -> None:
    answer = ask(demo, tool_choice="auto", extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    message = answer.choices[0].message
    assert message.content in ("yes", "no") or message.tool_calls


def refusal(demo: OpenAI, **more: Any) -> tuple[str | None, str | None, str]:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(demo, **more)
    return caught.value.code, caught.value.param, caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_an_invalid_tool_is_a_400_that_names_it(demo: OpenAI, stream: bool) -> None:
    strict: Any = {"name": "a", "strict": True, "parameters": {"properties": {"x": {"not": {}}}}}
    code, param, message = refusal(demo, tools=[{"type": "function", "function": strict}], stream=stream)
    assert (code, param) == ("invalid_schema", "tools")
    assert message.endswith(": not.")
    code, param, message = refusal(demo, model="demo", stream=stream)
    assert (code, param) == ("template_error", "tools")
    assert "template" in message
