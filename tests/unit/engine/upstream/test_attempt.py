"""One attempt: the body that is sent, and what becomes of whole and of streamed answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.errors import InvalidPrompt
from engine.types import Delta, Embedded, Finished
from engine.upstream.attempt import attempt, request_body
from engine.upstream.trouble import Broken, Busy, Problem
from tests.support.upstream import (
    CHAT,
    DONE,
    EMBEDDINGS,
    Reply,
    ScriptedTransport,
    chat_answer,
    chunk,
    events,
    forward,
    status,
)
from tests.support.virtual_time import run_in_virtual_time


def sent(body: str, *, is_streamed: bool = False) -> str:
    return request_body(body.encode(), "theirs", is_streamed=is_streamed).decode()


def test_only_the_model_changes_and_every_other_field_keeps_its_text() -> None:
    body = '{"messages":[{"content":"\\u00e9"}],"temperature":0.70,"model":"ours","seed":12345678901234567890,"x":1e2}'
    assert sent(body) == body.replace('"ours"', '"theirs"')


def test_the_fields_that_ask_for_a_stream_are_removed_from_a_line() -> None:
    assert (
        sent('{"model":"m","stream":true,"stream_options":{"include_usage":false},"n":2}') == '{"model":"theirs","n":2}'
    )


@pytest.mark.parametrize("options", ["", ',"stream_options":null', ',"stream_options":{"include_usage":false}'])
def test_a_stream_is_asked_for_with_its_usage(options: str) -> None:
    body = json.loads(sent('{"model":"m"' + options + "}", is_streamed=True))
    assert body == {"model": "theirs", "stream": True, "stream_options": {"include_usage": True}}


def test_other_options_of_a_stream_are_kept() -> None:
    body = json.loads(sent('{"stream_options":{"include_obfuscation":false}}', is_streamed=True))
    assert body["stream_options"] == {"include_obfuscation": False, "include_usage": True}


@pytest.mark.parametrize("body", ["[]", "", '{"stream_options":[]}', '{"stream_options":1}'])
def test_a_body_that_is_no_object_is_refused(body: str) -> None:
    with pytest.raises(InvalidPrompt):
        sent(body)


def run(reply: Reply, *, path: str = CHAT, is_streamed: bool = False) -> tuple[Finished | Embedded, list[Delta]]:
    deltas: list[Delta] = []
    outcome: list[Any] = []
    request = forward(path=path)

    async def main() -> None:
        send = deltas.extend if is_streamed else None
        outcome.append(await attempt(ScriptedTransport(reply), request, request.body, 600, send))

    run_in_virtual_time(main())
    return outcome[0], deltas


def streamed(*pieces: bytes) -> tuple[Finished, list[Delta]]:
    finished, deltas = run(events(*pieces), is_streamed=True)
    assert isinstance(finished, Finished)
    return finished, deltas


def test_a_stream_is_passed_on_and_its_end_has_all_of_it() -> None:
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'
    finished, deltas = streamed(b": ping\n\n", chunk("a"), chunk("b"), chunk(finish="stop"), usage, DONE)
    assert [delta.text for delta in deltas] == ["a", "b"]
    assert (finished.text, finished.usage.completion_tokens) == ("ab", 2)


def test_chunks_are_found_wherever_the_network_cuts() -> None:
    stream = b"".join((chunk("a"), chunk("b"), chunk(finish="stop"), DONE)).replace(b"\n", b"\r\n")
    finished, deltas = streamed(*(stream[at : at + 3] for at in range(0, len(stream), 3)))
    assert (finished.text, len(deltas)) == ("ab", 2)


def test_a_stream_without_its_last_event_is_whole_once_each_choice_has_ended() -> None:
    assert streamed(chunk("a"), chunk(finish="stop"))[0].text == "a"


@pytest.mark.parametrize(
    "pieces",
    [(), (chunk("a"),), (chunk("a"), DONE), (chunk("a"), b"data: {oops\n\n"), (b": ping\n\n",), (b"data: [DONE]\n\n",)],
)
def test_half_a_stream_is_broken(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(Broken):
        streamed(*pieces)


def test_an_error_in_a_stream_is_broken_with_its_words_after_the_text_before_it() -> None:
    deltas: list[Delta] = []
    reply = events(chunk("a") + b'event: error\ndata: {"error": {"message": "cuda", "code": 500}}\n\n')

    async def main() -> None:
        with pytest.raises(Broken, match="cuda"):
            await attempt(ScriptedTransport(reply), forward(), b"{}", 600, deltas.extend)

    run_in_virtual_time(main())
    assert [delta.text for delta in deltas] == ["a"]


def test_a_server_that_ignores_the_wish_for_a_stream_is_passed_on_too() -> None:
    finished, deltas = run(Reply(pieces=(chat_answer("hi"),)), is_streamed=True)
    assert [delta.text for delta in deltas] == ["hi"]
    assert isinstance(finished, Finished)


def test_an_answer_that_was_not_to_be_streamed_sends_no_deltas() -> None:
    finished, deltas = run(Reply(pieces=(chat_answer()[:10], chat_answer()[10:])))
    assert isinstance(finished, Finished)
    assert deltas == []


def test_embeddings_come_as_vectors() -> None:
    answer = b'{"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 1, "total_tokens": 1}}'
    assert isinstance(run(Reply(pieces=(answer,)), path=EMBEDDINGS)[0], Embedded)


def test_other_statuses_are_errors() -> None:
    with pytest.raises(Busy) as caught:
        run(status(429, retry_after="3"))
    assert caught.value.retry_after == 3


def test_a_connection_that_breaks_in_the_body_is_broken() -> None:
    with pytest.raises(Broken, match="connection reset"):
        run(Reply(pieces=(b'{"cho',), error=Broken(Problem(message="connection reset"))))
