from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.support.check import check_problem
from tests.support.stack import StackProcess, wait_for

HELLO: Any = [{"role": "user", "content": "hello"}]
URL = "/v1/chat/completions"


def body(**more: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": HELLO, **more}


def test_a_plain_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].message.content or "") > 20
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id is not None


def test_a_stream_has_the_text_of_the_plain_answer(client: OpenAI) -> None:
    plain = client.chat.completions.create(model="fake", messages=HELLO)
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == plain.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_answers_are_separated_by_their_index(client: OpenAI) -> None:
    plain = client.chat.completions.create(model="fake", messages=HELLO, n=3, seed=1, max_tokens=20)
    assert [choice.index for choice in plain.choices] == [0, 1, 2]
    texts, roles = [""] * 3, [0] * 3
    for chunk in client.chat.completions.create(model="fake", messages=HELLO, n=3, seed=1, max_tokens=20, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role == "assistant"
    assert texts == [choice.message.content for choice in plain.choices]
    assert roles == [1, 1, 1]


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_a_400_for_a_model_whose_template_ignores_them(client: OpenAI, stream: bool) -> None:
    tools: Any = [{"type": "function", "function": {"name": "now"}}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=HELLO, tools=tools, stream=stream)
    assert caught.value.param == "tools"
    assert "tool_choice" in caught.value.message
    client.chat.completions.create(model="fake", messages=HELLO, tools=tools, tool_choice="none", max_tokens=1)


def test_the_raw_stream_is_what_naive_decoders_expect(http: httpx2.Client) -> None:
    with http.stream("POST", URL, json=body(stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        raw = b"".join(response.iter_bytes())
    assert b"\r" not in raw
    events = raw.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert "usage" not in json.loads(events[0].removeprefix("data: "))


def test_parameters_reach_the_engine(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="also-fake", messages=HELLO)
    assert whole.model == "fake"
    text = whole.choices[0].message.content or ""
    short = client.chat.completions.create(model="fake", messages=HELLO, max_completion_tokens=5)
    assert (short.choices[0].message.content, short.choices[0].finish_reason) == (text[:5], "length")
    stopped = client.chat.completions.create(model="fake", messages=HELLO, stop=[text[8:11]])
    assert stopped.choices[0].message.content == text[: text.index(text[8:11])]
    endless = client.chat.completions.create(
        model="fake", messages=HELLO, max_tokens=200, extra_body={"ignore_eos": True}
    )
    assert endless.usage is not None
    assert endless.usage.completion_tokens == 200


def test_an_unknown_model_is_a_404_that_names_the_served_ones(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "fake" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_a_400_streamed_or_not(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "x" * 5000}], stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


BAD = {
    "no body": (b"", 400, "invalid_json", None),
    "half a body": (b'{"model": ', 400, "invalid_json", None),
    "a list": (b"[]", 400, "invalid_json", None),
    "a NUL": (b'{"model": "a\\u0000"}', 400, "invalid_json", None),
    "bad UTF-8": (b'{"model": "\xff"}', 400, "invalid_json", None),
    "no model": (json.dumps({"messages": HELLO}).encode(), 400, "missing_required_parameter", "model"),
    "a wrong type": (json.dumps(body(temperature="warm")).encode(), 400, "invalid_type", "temperature"),
    "what we do not do": (json.dumps(body(audio={})).encode(), 400, "unsupported_parameter", "audio"),
    "too many bytes": (json.dumps(body(user="x" * 100_000)).encode(), 413, "request_too_large", None),
}


@pytest.mark.parametrize(("raw", "status", "code", "param"), BAD.values(), ids=BAD.keys())
def test_a_bad_body_is_answered_with_the_envelope(
    http: httpx2.Client, raw: bytes, status: int, code: str, param: str | None
) -> None:
    response = http.post(URL, content=raw, headers={"content-type": "application/json"})
    check_problem(response, status, code, param)


def test_a_body_that_is_not_json_by_its_own_word_is_a_415(http: httpx2.Client) -> None:
    check_problem(http.post(URL, content=b"{}", headers={"content-type": "text/plain"}), 415, "unsupported_media_type")
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    check_problem(http.post(URL, content=b"{}", headers=headers), 415, "unsupported_media_type")


def test_unknown_paths_and_methods_are_answered_with_the_envelope(http: httpx2.Client) -> None:
    check_problem(http.get("/v1/nothing"), 404, "unknown_url")
    check_problem(http.get("/v1/chat/completions/"), 404, "unknown_url")
    check_problem(http.get("/v1/completions"), 405, "method_not_allowed")


def test_every_answer_has_its_headers_and_the_clients_request_id(http: httpx2.Client) -> None:
    response = http.post(URL, json=body(), headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["openai-processing-ms"].isdigit()
    assert response.headers["openai-version"]


def running_slots(server: StackProcess, http: httpx2.Client) -> int:
    """The number of open streams, from the metrics."""
    for line in http.get("/metrics").text.splitlines():
        if line.startswith("millrace_open_streams "):
            return int(float(line.split()[1]))
    raise AssertionError("no such metric")


def test_a_client_that_disconnects_frees_the_slot_at_once(
    server: StackProcess, client: OpenAI, http: httpx2.Client
) -> None:
    """Two endless answers fill both slots of the slow model; after both clients disconnect, a short one runs."""
    for _ in range(2):
        stream = client.chat.completions.create(
            model="slow", messages=HELLO, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    answer = client.with_options(timeout=10, max_retries=0).chat.completions.create(
        model="slow", messages=HELLO, max_tokens=3
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    wait_for(lambda: running_slots(server, http) == 0, "no stream is open")


def test_a_client_that_disconnects_before_the_first_token_frees_its_slot(client: OpenAI, http: httpx2.Client) -> None:
    def leave() -> None:
        with pytest.raises(httpx2.TimeoutException):
            http.post(URL, json=body(model="slow", max_tokens=2000, ignore_eos=True), timeout=0.4)

    threads = [threading.Thread(target=leave) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer = client.with_options(timeout=10, max_retries=0).chat.completions.create(
        model="slow", messages=HELLO, max_tokens=2
    )
    assert answer.choices[0].finish_reason == "length"


async def test_many_streams_at_once_lose_nothing(server: StackProcess, client: OpenAI) -> None:
    expected = {
        n: client.chat.completions.create(model="fake", messages=[{"role": "user", "content": f"q{n}"}])
        .choices[0]
        .message.content
        for n in range(24)
    }

    async def all_at_once() -> dict[int, str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as asynchronous:

            async def one(n: int) -> str:
                stream = await asynchronous.chat.completions.create(
                    model="fake", messages=[{"role": "user", "content": f"q{n}"}], stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return dict(enumerate(await asyncio.gather(*[one(n) for n in range(24)])))

    assert await all_at_once() == expected
