"""Options of a generation through the official client: `n`, logprobs, logit bias, seeds, reasoning. On the demo model; reasoning
on a fake model."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

from core.settings import ROOT
from engine.backends.llama.tokenizer import load_vocabulary
from tests.support.stack import StackProcess

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
STORY: Any = [{"role": "user", "content": "Tell me a story about a mill and its wheel."}]


def ask(client: OpenAI, **more: Any) -> Any:
    request: dict[str, Any] = {"model": "demo", "messages": FRANCE, **more}
    return client.chat.completions.create(**request)


def test_several_answers_differ_and_their_deltas_add_up_by_index(demo: OpenAI) -> None:
    request: dict[str, Any] = {"messages": STORY, "n": 3, "seed": 11, "temperature": 2, "max_tokens": 20}
    plain = ask(demo, **request)
    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    texts = [""] * 3
    for chunk in ask(demo, stream=True, stream_options={"include_usage": True}, **request):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert texts == [choice.message.content for choice in plain.choices]
    assert len(set(texts)) > 1
    assert usage.completion_tokens == plain.usage.completion_tokens


@pytest.mark.parametrize("extra", [{}, {"stop": [" is"]}, {"max_tokens": 4}, {"n": 2}], ids=str)
def test_logprobs_of_all_deltas_add_up_to_the_plain_ones(demo: OpenAI, extra: dict[str, Any]) -> None:
    plain = ask(demo, logprobs=True, top_logprobs=3, **extra)
    added: list[list[Any]] = [[] for _ in plain.choices]
    for chunk in ask(demo, logprobs=True, top_logprobs=3, stream=True, **extra):
        for choice in chunk.choices:
            added[choice.index] += choice.logprobs.content if choice.logprobs else []
    for choice, streamed in zip(plain.choices, added, strict=True):
        assert [one.token for one in streamed] == [one.token for one in choice.logprobs.content]
        for one, other in zip(streamed, choice.logprobs.content, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-2), (
                "what shares a step may change the last digits"
            )
            assert one.top_logprobs[0].token == other.top_logprobs[0].token


def test_logprobs_spell_the_answer_and_are_those_of_the_likeliest(demo: OpenAI) -> None:
    (choice,) = ask(demo, logprobs=True, top_logprobs=3).choices
    spelled = b"".join(bytes(one.bytes) for one in choice.logprobs.content)
    assert spelled.decode() == choice.message.content == "The capital of France is Paris."
    for one in choice.logprobs.content:
        assert (one.token, one.logprob) == (one.top_logprobs[0].token, one.top_logprobs[0].logprob)
        assert len(one.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in one.top_logprobs) <= 1.001
    assert ask(demo).choices[0].logprobs is None


def test_a_bias_bans_a_token_or_forces_it(demo: OpenAI) -> None:
    tokenizer = load_vocabulary(ROOT / "models" / "demo.gguf")
    rome, paris = (tokenizer.encode(f" {city}", special=False, add_bos=False)[0] for city in ("Rome", "Paris"))
    forced = ask(demo, logit_bias={str(rome): 100}, max_tokens=3).choices[0].message.content
    assert forced == tokenizer.piece(rome).decode() * 3
    without_paris = ask(demo, logit_bias={str(paris): -100}).choices[0].message.content
    assert without_paris != ask(demo).choices[0].message.content


def test_a_seed_gives_the_same_answer_alone_and_under_load(answering: StackProcess, demo: OpenAI) -> None:
    def story(seed: int) -> str | None:
        return ask(client, messages=STORY, seed=seed, temperature=2, max_tokens=24).choices[0].message.content

    with answering.client() as client, ThreadPoolExecutor(8) as pool:
        alone = [story(seed) for seed in range(6)]
        assert [story(seed) for seed in range(6)] == alone
        noise = [pool.submit(ask, client, messages=STORY, temperature=2, max_tokens=40) for _ in range(3)]
        together = list(pool.map(story, range(6)))
        assert all(each.result().choices for each in noise)
    assert together == alone
    assert len(set(alone)) > 1


def test_reasoning_is_separated_from_the_answer_and_counted(demo: OpenAI) -> None:
    plain = ask(demo, model="lab/thinker")
    assert plain.model == "lab/thinker"
    message = plain.choices[0].message
    assert message.reasoning_content == "The wheel turns while the water runs."
    assert "<" not in message.content
    reasoning_tokens = plain.usage.completion_tokens_details.reasoning_tokens
    assert 0 < reasoning_tokens < plain.usage.completion_tokens
    thought, said = "", ""
    for chunk in ask(demo, model="lab/thinker", stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            said += choice.delta.content or ""
        usage = chunk.usage
    assert (thought, said) == (message.reasoning_content, message.content)
    assert usage.completion_tokens_details.reasoning_tokens == reasoning_tokens


def test_reasoning_is_free_text_and_the_answer_after_it_fits_its_schema(demo: OpenAI) -> None:
    answer = ask(demo, model="lab/thinker", extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert answer.choices[0].message.reasoning_content == "The wheel turns while the water runs."
    assert answer.choices[0].message.content in ("yes", "no")


def test_template_arguments_of_the_request_reach_the_template(demo: OpenAI) -> None:
    answer = ask(demo, model="lab/thinker", extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
