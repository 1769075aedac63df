from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI

from api.schemas.completion_objects import CompletionObject
from tests.support.check import check_problem
from tests.support.stack import StackProcess

URL = "/v1/completions"
PROMPT = "Once upon a time"


def test_a_completion_has_openais_default_length(client: OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt=PROMPT)
    assert (answer.object, answer.id[:5], answer.model) == ("text_completion", "cmpl-", "fake")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.usage.prompt_tokens == len(PROMPT) + 1, "bytes, and the token that begins a text: no template"
    assert answer._request_id is not None
    whole = client.completions.create(model="fake", prompt=PROMPT, max_tokens=500)
    assert whole.choices[0].finish_reason == "stop"
    assert whole.choices[0].text.startswith(answer.choices[0].text)


def test_a_stream_has_the_text_of_the_plain_answer(client: OpenAI) -> None:
    plain = client.completions.create(model="fake", prompt=PROMPT, max_tokens=500)
    options: Any = {"include_usage": True}
    chunks = list(
        client.completions.create(model="fake", prompt=PROMPT, max_tokens=500, stream=True, stream_options=options)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert chunks[-1].usage == plain.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_the_async_client_streams_too(server: StackProcess) -> None:
    async def read() -> str:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=30) as client:
            stream = await client.completions.create(model="fake", prompt=PROMPT, max_tokens=500, stream=True)
            return "".join([chunk.choices[0].text async for chunk in stream])

    with server.client() as client:
        assert await read() == client.completions.create(model="fake", prompt=PROMPT, max_tokens=500).choices[0].text


def test_a_stream_ends_with_done_and_has_no_ids(http: httpx2.Client) -> None:
    text = http.post(URL, json={"model": "fake", "prompt": PROMPT, "stream": True}).text
    assert text.endswith("data: [DONE]\n\n")
    assert all(line.startswith("data: ") for line in text.splitlines() if line)
    for line in text.splitlines()[:-2]:
        if line:
            CompletionObject.model_validate_json(line.removeprefix("data: "))


def test_several_prompts_are_one_object_numbered_prompt_by_prompt(client: OpenAI) -> None:
    alone = [client.completions.create(model="fake", prompt=each, n=2).choices for each in ("one", "two")]
    both = client.completions.create(model="fake", prompt=["one", "two"], n=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices] == [choice.text for choices in alone for choice in choices]
    assert both.usage is not None
    assert (both.usage.prompt_tokens, both.usage.completion_tokens) == (8, 64)
    stream = client.completions.create(model="fake", prompt=["one", "two"], n=2, stream=True)
    texts = dict.fromkeys(range(4), "")
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == [choice.text for choice in both.choices]


def test_a_prompt_may_be_token_ids(client: OpenAI) -> None:
    spelled = client.completions.create(model="fake", prompt="one", echo=True)
    ids = [256, *b"one"]
    tokens = client.completions.create(model="fake", prompt=ids, echo=True)
    lists = client.completions.create(model="fake", prompt=[ids, ids], echo=True)
    assert [choice.text for choice in lists.choices] == [tokens.choices[0].text] * 2 == [spelled.choices[0].text] * 2


def test_an_echo_with_logprobs_scores_the_answer_where_its_text_is(client: OpenAI) -> None:
    prompt = "Once there was a mill. " * 40  # more tokens than one prefill step takes
    answer = client.completions.create(model="fake", prompt=prompt, echo=True, logprobs=1, max_tokens=4)
    choice = answer.choices[0]
    assert choice.text.startswith(prompt)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.logprobs.text_offset is not None
    assert "".join(choice.logprobs.tokens) == choice.text
    assert (choice.logprobs.token_logprobs or ())[:2] == [None, 0.0], "the first token follows nothing"
    for offset, token in zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True):
        assert choice.text[offset:].startswith(token)
    assert (
        len(choice.logprobs.token_logprobs or ())
        == len(choice.logprobs.top_logprobs or ())
        == len(choice.logprobs.tokens)
    )


def test_a_constraint_holds_for_a_completion(client: OpenAI) -> None:
    more = {"structured_outputs": {"choice": ["yes", "no"]}}
    assert client.completions.create(model="fake", prompt="Well?", extra_body=more).choices[0].text in ("yes", "no")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "prompt"),
        ({"prompt": {}}, "invalid_type", "prompt"),
        ({"prompt": PROMPT, "suffix": "the end"}, "unsupported_parameter", "suffix"),
        ({"prompt": PROMPT, "n": 2, "best_of": 3}, "unsupported_parameter", "best_of"),
        ({"prompt": PROMPT, "logprobs": 99}, "invalid_value", "logprobs"),
        ({"prompt": PROMPT, "stream_options": {}}, "invalid_value", "stream_options"),
        ({"prompt": [9999]}, "invalid_value", "prompt"),
        ({"prompt": ["short", "x" * 5000]}, "context_length_exceeded", "prompt"),
        ({"prompt": PROMPT, "logit_bias": {"9999": 1}}, "invalid_value", "logit_bias"),
    ],
)
def test_a_wrong_body_is_a_400_that_names_the_field(
    http: httpx2.Client, body: dict[str, Any], code: str, param: str
) -> None:
    check_problem(http.post(URL, json={"model": "fake", **body}), 400, code, param)


def test_an_unknown_model_is_a_404(http: httpx2.Client) -> None:
    check_problem(http.post(URL, json={"model": "none", "prompt": "x"}), 404, "model_not_found", "model")


def test_a_completion_can_be_read_again_as_the_job_it_was(http: httpx2.Client) -> None:
    answer = http.post(URL, json={"model": "fake", "prompt": PROMPT}).json()
    job = http.get(f"/v1/jobs/{answer['id']}").json()
    assert job["response"] == answer
    events = http.get(f"/v1/jobs/{answer['id']}/events").text
    chunks = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
