"""The canary: one tenant's words are never in another's answer, nor told by the time or the tokens it takes."""

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
    teller, asker = secured.key(f"teller-{model}"), secured.key(f"asker-{model}")
    questions = [f"What is the secret of file {number}?" for number in range(6)]
    alone = [answer(asker, model, question) for question in questions]
    with ThreadPoolExecutor(8) as threads:
        told = [
            threads.submit(answer, teller, model, f"The secret of file {number} is {secret}.")
            for number, secret in enumerate(SECRETS * 3)
        ]
        asked = [threads.submit(answer, asker, model, question) for question in questions * 3]
        answers = [future.result() for future in asked]
        assert all(future.result() for future in told)
    assert [a for a in answers if any(secret in a for secret in SECRETS)] == []
    if model == "fake":  # another batch, another rounding; the fake has none
        assert answers == alone * 3


@pytest.mark.parametrize("model", ["fake", "demo"])
def test_what_one_tenant_has_read_is_read_again_for_another(secured: Guarded, model: str) -> None:
    first, second = secured.key(f"first-{model}"), secured.key(f"second-{model}")

    def cached(key: Key) -> int:
        details = ask(key, model, f"Only {model} is asked this.").usage.prompt_tokens_details
        return details.cached_tokens if details else 0

    assert cached(first) == 0
    assert cached(first) > 0, "there is a prefix cache"
    assert cached(second) == 0
    assert cached(second) > 0


def test_keys_of_one_tenant_share_what_was_read(secured: Guarded) -> None:
    first, second = secured.key("household"), secured.key("household")
    ask(first, "fake", "Only the household asks this.")
    details = ask(second, "fake", "Only the household asks this.").usage.prompt_tokens_details
    assert details.cached_tokens > 0
