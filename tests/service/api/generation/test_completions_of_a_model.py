"""Completions and embeddings of a real model."""

from __future__ import annotations

import math
from typing import Any

import pytest
from openai import OpenAI

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def test_an_echoed_prompt_has_the_probability_of_each_token_but_its_first(demo: OpenAI) -> None:
    answer = demo.completions.create(model="demo", prompt=["The capital", PROMPT], echo=True, logprobs=2, max_tokens=3)
    for choice, prompt in zip(answer.choices, ("The capital", PROMPT), strict=True):
        logprobs = choice.logprobs
        assert choice.text.startswith(prompt)
        assert logprobs is not None
        assert logprobs.tokens is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.text_offset is not None
        assert [value is None for value in logprobs.token_logprobs] == [True] + [False] * (len(logprobs.tokens) - 1)
        assert all(value <= 0 for value in logprobs.token_logprobs[1:])
        for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
            assert choice.text[offset:].startswith(token)


def test_a_prompt_is_scored_without_an_answer(demo: OpenAI) -> None:
    """As evaluation harnesses do: the same numbers with `max_tokens: 0` as with 1, and none for the token left out."""
    prompts: list[Any] = [PROMPT, "The capital of France is Paris.", list(range(40, 60))]
    for prompt in prompts:
        scored, longer = (
            demo.completions.create(
                model="demo",
                prompt=prompt,
                echo=True,
                logprobs=1,
                max_tokens=n,
                temperature=0,
            )
            for n in (0, 1)
        )
        assert scored.usage is not None
        assert (scored.usage.completion_tokens, scored.choices[0].finish_reason) == (0, "length")
        mine, other = scored.choices[0].logprobs, longer.choices[0].logprobs
        assert mine is not None
        assert other is not None
        assert mine.token_logprobs is not None
        assert other.token_logprobs is not None
        assert len(mine.token_logprobs) == scored.usage.prompt_tokens
        assert mine.token_logprobs[1:] == pytest.approx(other.token_logprobs[1 : len(mine.token_logprobs)], abs=1e-3)


def test_a_completion_of_no_tokens_only_counts_its_prompt(demo: OpenAI) -> None:
    for echo in (False, True):
        answer = demo.completions.create(model="demo", prompt="The capital", max_tokens=0, echo=echo)
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens > 0, answer.usage.completion_tokens) == (True, 0)
        assert answer.choices[0].text == ("The capital" if echo else "")
        stream = demo.completions.create(model="demo", prompt="The capital", max_tokens=0, echo=echo, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_the_spelling_of_a_special_token_is_text_in_a_completion(demo: OpenAI) -> None:
    chat = demo.chat.completions.create(model="demo", messages=[{"role": "user", "content": "hello"}])
    raw = demo.completions.create(model="demo", prompt="<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")
    assert chat.usage is not None
    assert raw.usage is not None
    assert raw.usage.prompt_tokens > chat.usage.prompt_tokens


def test_texts_that_are_alike_have_vectors_that_are_near(demo: OpenAI) -> None:
    texts = ["What is the capital of France?", "What is the capital of Spain?", '{"ticket": 7, "label": "billing"}']
    france, spain, ticket = (each.embedding for each in demo.embeddings.create(model="demo", input=texts).data)
    assert abs(math.hypot(*france) - 1) < 1e-4
    near, far = (sum(a * b for a, b in zip(france, other, strict=True)) for other in (spain, ticket))
    assert near > far
