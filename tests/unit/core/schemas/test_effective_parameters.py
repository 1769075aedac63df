"""Effective sampling parameters: of the body, the model file, or the endpoint."""

from __future__ import annotations

from core.models.fields.sampling import MAX_TOKENS, SamplingFields
from core.models.model_files import Parameters
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from core.schemas.completion import CompletionBody
from core.schemas.generation import GenerationParameters, effective_parameters

MESSAGES = [{"role": "user", "content": "hello"}]


def chat(**more: object) -> ChatRequest:
    return parse_body(ChatRequest, {"model": "m", "messages": MESSAGES, **more})


def completion(**more: object) -> CompletionBody:
    return parse_body(CompletionBody, {"model": "m", "prompt": "hello", **more})


def test_the_effective_parameters_are_those_that_a_body_and_a_model_file_share() -> None:
    assert GenerationParameters.model_fields.keys() == SamplingFields.model_fields.keys()


def test_the_body_overrides_the_model_file() -> None:
    found = effective_parameters(chat(temperature=0, top_k=5), Parameters(temperature=0.7, top_p=0.9, seed=3))
    assert found == GenerationParameters(temperature=0, top_k=5, top_p=0.9)


def test_the_limit_is_the_newer_fields_then_the_older_ones_then_the_files_then_the_endpoints() -> None:
    file = Parameters(max_tokens=7)
    assert effective_parameters(chat(max_completion_tokens=2, max_tokens=3), file).max_tokens == 2
    assert effective_parameters(chat(max_tokens=3), file).max_tokens == 3
    assert effective_parameters(chat(), file).max_tokens == 7
    assert effective_parameters(chat(), Parameters()).max_tokens is None
    assert effective_parameters(completion(), file).max_tokens == 7
    assert effective_parameters(completion(), Parameters()).max_tokens == 16


def test_minus_one_lifts_the_limits_of_the_file_and_of_the_endpoint() -> None:
    file = Parameters(max_tokens=7, top_k=9)
    assert effective_parameters(chat(max_tokens=-1, top_k=-1), file).max_tokens == MAX_TOKENS
    assert effective_parameters(chat(max_completion_tokens=-1, max_tokens=3), file).max_tokens == MAX_TOKENS
    assert effective_parameters(chat(top_k=-1), file).top_k == 0
    assert effective_parameters(completion(max_tokens=-1), Parameters()).max_tokens == MAX_TOKENS
    assert Parameters(max_tokens=-1, top_k=-1) == Parameters(max_tokens=MAX_TOKENS, top_k=0)
