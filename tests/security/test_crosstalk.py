"""Text of one tenant is never in a response to another, and neither latency nor token counts reveal it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.guarded import Guarded, Key

SECRETS = [f"cormorant{number}" for number in range(6)]
SHARED = "You are a careful clerk. Read the file and answer in one word. " * 4


def ask(key: Key, model: str, words: str, **more: Any) -> Any:
    messages: list[Any] = [{"role": "system", "content": SHARED}, {"role": "user", "content": words}]
    return key.client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24, **more)


def answer(key: Key, model: str, words: str) -> str:
    return ask(key, model, words).choices[0].message.content or ""


@pytest.mark.parametrize("model", ["fake", "demo"])
def test_a_secret_of_one_tenant_is_in_no_answer_to_another_while_both_are_served(secured: Guarded, model: str) -> None:
    victim, attacker = secured.key(f"victim-{model}"), secured.key(f"attacker-{model}")
    questions = [f"What is the secret of file {number}?" for number in range(6)]
    alone = [answer(attacker, model, question) for question in questions]
    with ThreadPoolExecutor(8) as threads:
        writes = [
            threads.submit(answer, victim, model, f"The secret of file {number} is {secret}.")
            for number, secret in enumerate(SECRETS * 3)
        ]
        reads = [threads.submit(answer, attacker, model, question) for question in questions * 3]
        answers = [future.result() for future in reads]
        assert all(future.result() for future in writes)
    assert [a for a in answers if any(secret in a for secret in SECRETS)] == []
    if model == "fake":  # a real model rounds differently in another batch
        assert answers == alone * 3


@pytest.mark.parametrize("model", ["fake", "demo"])
def test_a_prefix_cached_for_one_tenant_is_prefilled_again_for_another(secured: Guarded, model: str) -> None:
    first, second = secured.key(f"first-{model}"), secured.key(f"second-{model}")

    def cached(key: Key) -> int:
        details = ask(key, model, f"Only {model} is asked this.").usage.prompt_tokens_details
        return details.cached_tokens if details else 0

    assert cached(first) == 0
    assert cached(first) > 0, "the prefix cache works"
    assert cached(second) == 0
    assert cached(second) > 0


def test_keys_of_one_tenant_share_the_prefix_cache(secured: Guarded) -> None:
    first, second = secured.key("household"), secured.key("household")
    ask(first, "fake", "Only the household asks this.")
    details = ask(second, "fake", "Only the household asks this.").usage.prompt_tokens_details
    assert details.cached_tokens > 0
