"""The engine request of a chat body."""

from __future__ import annotations

from typing import Any

from core.models.model_files import ModelConfig, Parameters
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from core.schemas.generation import GenerationParameters, effective_parameters
from engine.types import ChatPrompt, Priority, Request, SamplingParams, ToolChoice, ToolMode
from workers.generation.engine_request import to_engine_request

MODEL = ModelConfig(name="m", parameters=Parameters(typical_p=0.9))
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}, "strict": True}}


def ask(**more: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **more}
    return to_engine_request("r", parse_body(ChatRequest, body), MODEL, tenant="t", priority=Priority.CHAT)


def test_a_plain_body_gets_the_defaults_of_its_model_file() -> None:
    plain = ask()
    assert (plain.n, plain.logprobs, plain.tool_choice, plain.parallel_tool_calls) == (1, None, ToolChoice(), True)
    assert plain.sampling.logit_bias == {}
    assert plain.sampling.typical_p == 0.9, "the model file's"


def test_tools_reach_the_template_unchanged() -> None:
    asked = ask(tools=[{**TOOL, "unknown": 1}], parallel_tool_calls=False)
    assert isinstance(asked.prompt, ChatPrompt)
    assert asked.prompt.tools == [TOOL]
    assert asked.parallel_tool_calls is False


def test_template_kwargs_are_passed_on() -> None:
    asked = ask(chat_template_kwargs={"enable_thinking": False})
    assert isinstance(asked.prompt, ChatPrompt)
    assert asked.prompt.template_kwargs == {"enable_thinking": False}


def test_content_reaches_the_template_as_it_was_sent_but_null() -> None:
    parts = [{"type": "text", "text": text, "cache_control": {}} for text in "ab"]
    users = [{"role": "user", "content": content} for content in (parts, "text", [])]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}
    asked = ask(messages=[*users, {"role": "assistant", "content": None}, call])
    assert isinstance(asked.prompt, ChatPrompt)
    contents = [message["content"] for message in asked.prompt.messages]
    assert contents == [[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "text", "", "", ""]


def test_the_end_of_the_prompt_is_passed_on() -> None:
    for given in ({}, {"add_generation_prompt": False}, {"continue_final_message": True}):
        asked = ask(messages=[{"role": "assistant", "content": "Well,"}], **given)
        assert isinstance(asked.prompt, ChatPrompt)
        ends = {"add_generation_prompt": True, "continue_final_message": False, **given}
        assert {name: getattr(asked.prompt, name) for name in ends} == ends


def test_each_choice_of_tools_has_its_mode() -> None:
    named = {"type": "function", "function": {"name": "now"}}
    assert ask(tools=[TOOL], tool_choice="none").tool_choice == ToolChoice(mode=ToolMode.NONE)
    assert ask(tools=[TOOL], tool_choice="required").tool_choice == ToolChoice(mode=ToolMode.REQUIRED)
    assert ask(tools=[TOOL], tool_choice=named).tool_choice == ToolChoice(mode=ToolMode.REQUIRED, name="now")


def test_n_logprobs_and_biases_are_passed_on() -> None:
    asked = ask(n=3, logprobs=True, logit_bias={"12": -100}, typical_p=0.5)
    assert (asked.n, asked.logprobs) == (3, 0)
    assert ask(logprobs=True, top_logprobs=4).logprobs == 4
    assert ask(logprobs=False).logprobs is None
    assert (asked.sampling.logit_bias, asked.sampling.typical_p) == ({12: -100.0}, 0.5)


def test_the_parameters_shown_by_the_api_are_those_of_the_engine_request() -> None:
    body = parse_body(ChatRequest, {"model": "m", "messages": [{"role": "user", "content": "x"}], "top_p": 0.5})
    said = effective_parameters(body, MODEL.parameters).model_dump()
    asked = to_engine_request("r", body, MODEL, tenant="t", priority=Priority.CHAT)
    limit = said.pop("max_tokens")
    assert asked.max_tokens == limit
    assert {name: getattr(asked.sampling, name) for name in said} == said


def test_the_neutral_parameters_are_the_defaults_of_the_engine() -> None:
    plain = GenerationParameters().model_dump(exclude={"max_tokens"})
    assert {name: getattr(SamplingParams(), name) for name in plain} == plain
