"""Completions and embeddings of a real model."""

from __future__ import annotations

import math

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
