"""Events of a response: their numbers do not depend on the split of the answer into chunks."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter

from api.schemas.responses_events import LiveEvents, ResponseEvent, events_after, stored_events
from core.schemas.responses.chat import input_items
from core.schemas.responses.items import items_to_json, with_ids
from core.schemas.responses.objects import response_of, unfinished
from core.schemas.responses.request import ResponsesRequest

REQUEST = ResponsesRequest(model="m", input="hello")
OPENING = unfinished(REQUEST, response_id="resp_0", created_at=1, model="m", status="in_progress")


def answer(reasoning: str, text: str, calls: list[str], reason: str = "stop") -> dict[str, Any]:
    """A chat answer; each call is its arguments."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{index}", "type": "function", "function": {"name": "f", "arguments": arguments}}
            for index, arguments in enumerate(calls)
        ]
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return {"id": "chatcmpl-0", "created": 2, "model": "m", "choices": [choice], "usage": usage}


def chunk(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}


def chunks(reasoning: str, text: str, calls: list[str], size: int) -> list[dict[str, Any]]:
    """That answer as chunks of `size` characters."""

    def pieces(whole: str) -> list[str]:
        return [whole[start : start + size] for start in range(0, len(whole), size)]

    found = [chunk(role="assistant", content="", refusal=None)]
    found += [chunk(reasoning_content=piece) for piece in pieces(reasoning)]
    found += [chunk(content=piece) for piece in pieces(text)]
    for index, arguments in enumerate(calls):
        head = {"id": f"call_{index}", "type": "function", "function": {"name": "f", "arguments": ""}}
        found.append(chunk(tool_calls=[{"index": index, **head}]))
        found += [chunk(tool_calls=[{"index": index, "function": {"arguments": p}}]) for p in pieces(arguments)]
    return found


def live_events(parts: tuple[str, str, list[str]], size: int, num_chunks: int) -> list[ResponseEvent]:
    """The events of the first `num_chunks` chunks, then the remaining ones from the stored answer."""
    live = LiveEvents(OPENING)
    events = live.start()
    for each in chunks(*parts, size)[:num_chunks]:
        events += live.add_chunk(each)
    rest = live.finish(response_of(answer(*parts), REQUEST, response_id="resp_0", created_at=1))
    assert rest is not None
    return events + rest


def joined(events: list[ResponseEvent]) -> list[tuple[str, str]]:
    """Type and fields of each event, with the deltas of an item joined."""
    found: list[tuple[str, str]] = []
    for event in events:
        if event.delta is None:
            found.append((event.type, json.dumps(event.fields, sort_keys=True)))
        elif found[-1][0] == event.type:
            found[-1] = (event.type, found[-1][1] + event.delta)
        else:
            found.append((event.type, event.delta))
    return found


texts = st.text("aé🙂 ", max_size=12)
parts = st.tuples(texts, texts, st.lists(texts, max_size=3))


@given(parts, st.integers(1, 5), st.integers(0, 40))
def test_live_and_stored_events_join_to_one_stream(
    parts: tuple[str, str, list[str]], size: int, num_chunks: int
) -> None:
    whole = response_of(answer(*parts), REQUEST, response_id="resp_0", created_at=1)
    events = live_events(parts, size, num_chunks)
    assert all(one.number < two.number for one, two in pairwise(events))
    assert joined(events) == joined(stored_events(whole, OPENING).events)


@given(parts, st.integers(1, 5), st.integers(0, 40), st.integers(0, 60))
def test_a_client_that_reconnects_gets_the_remaining_events_once(
    parts: tuple[str, str, list[str]], size: int, num_chunks: int, place: int
) -> None:
    events = live_events(parts, size, num_chunks)
    seen = events[: place + 1]
    whole = stored_events(response_of(answer(*parts), REQUEST, response_id="resp_0", created_at=1), OPENING).events
    assert joined(seen + events_after(whole, seen[-1].number)) == joined(whole)


def test_a_different_answer_is_never_appended_to_the_streamed_text() -> None:
    live = LiveEvents(OPENING)
    live.start()
    live.add_chunk(chunk(content="The capital"))
    assert live.finish(response_of(answer("", "Paris.", []), REQUEST, response_id="resp_0")) is None
    assert live.finish(response_of(answer("hm", "The capital is", []), REQUEST, response_id="resp_0")) is None


def test_text_after_a_call_is_in_the_response_that_ends_the_stream() -> None:
    live = LiveEvents(OPENING)
    events = live.start()
    for each in [*chunks("", "Look: ", ["{}"], 9), chunk(content="done")]:
        events += live.add_chunk(each)
    whole = response_of(answer("", "Look: done", ["{}"]), REQUEST, response_id="resp_0", created_at=1)
    rest = live.finish(whole)
    assert rest is not None
    assert [event.type for event in rest] == [
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert rest[-1].fields["response"]["output"][0]["content"][0]["text"] == "Look: done"
    assert all(one.number < two.number for one, two in pairwise(events + rest))


def test_calls_that_a_server_mixes_are_whole_in_the_response_that_ends_the_stream() -> None:
    live = LiveEvents(OPENING)
    live.start()
    heads = [
        {"index": index, "id": f"call_{index}", "type": "function", "function": {"name": "f", "arguments": ""}}
        for index in (0, 1)
    ]
    for delta in (*heads, {"index": 0, "function": {"arguments": "{}"}}, {"index": 1, "function": {"arguments": "[]"}}):
        live.add_chunk(chunk(tool_calls=[delta]))
    rest = live.finish(response_of(answer("", "", ["{}", "[]"]), REQUEST, response_id="resp_0", created_at=1))
    assert rest is not None
    assert rest[-1].type == "response.completed"
    assert [item["arguments"] for item in rest[-1].fields["response"]["output"]] == ["{}", "[]"]
    done = next(event for event in rest if event.type == "response.function_call_arguments.done")
    assert done.fields["arguments"] == "[]", "nothing of the other call"


def test_reasoning_after_text_is_in_the_response_that_ends_the_stream() -> None:
    live = LiveEvents(OPENING)
    live.start()
    for each in (chunk(content="A"), chunk(reasoning_content="hm"), chunk(content="B")):
        live.add_chunk(each)
    rest = live.finish(response_of(answer("hm", "AB", []), REQUEST, response_id="resp_0", created_at=1))
    assert rest is not None
    assert [item["type"] for item in rest[-1].fields["response"]["output"]] == ["reasoning", "message"]


@pytest.mark.parametrize(
    ("reason", "parts", "status", "of_items"),
    [
        ("stop", ("", "Hi", []), "completed", ["completed"]),
        ("length", ("", "Hi", []), "incomplete", ["incomplete"]),
        ("length", ("hm", "", []), "incomplete", ["incomplete"]),
        ("length", ("hm", "Hi", []), "incomplete", ["completed", "incomplete"]),
        ("content_filter", ("", "Hi", []), "incomplete", ["incomplete"]),
        ("tool_calls", ("", "", ["{}", "{}"]), "completed", ["completed", "completed"]),
        ("stop", ("", "", []), "completed", ["completed"]),
    ],
)
def test_only_the_last_item_of_an_answer_that_was_cut_off_is_incomplete(
    reason: str, parts: tuple[str, str, list[str]], status: str, of_items: list[str]
) -> None:
    response = response_of(answer(*parts, reason=reason), REQUEST)
    assert (response.id, response.status) == ("resp_0", status)
    assert [item.status for item in response.output] == of_items
    details = response.incomplete_details
    assert (details is not None) == (status == "incomplete")
    assert details is None or details.reason == {"length": "max_output_tokens"}.get(reason, reason)


def unknown(value: Any) -> set[str]:
    """Names of fields that the client's types lack, at any depth."""
    if isinstance(value, list):
        return {name for each in value for name in unknown(each)}
    if not hasattr(value, "model_extra"):
        return set()
    inside = {name for field in value.model_fields_set for name in unknown(getattr(value, field, None))}
    return inside | set(value.model_extra or ())


def test_responses_and_events_match_the_official_clients_types() -> None:
    """The client accepts unknown fields, its types do not. OpenAI sends `store` and the name of a call, the types lack them."""
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
    more = {"tools": tools, "metadata": {"a": "b"}, "reasoning": {"effort": "low"}}
    asked = ResponsesRequest.model_validate({"model": "m", "input": "hello", **more})
    whole = response_of(answer("hm", "Hi", ["{}"]), asked, response_id="resp_0")
    assert unknown(Response.model_validate_json(whole.model_dump_json(by_alias=True))) == {"store"}
    events: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in stored_events(whole, OPENING).events:
        name, data = event.encode().removesuffix(b"\n\n").split(b"\ndata: ")
        parsed = events.validate_json(data)
        assert name == b"event: " + parsed.type.encode()
        assert unknown(parsed) <= {"store", "name"}
        if parsed.type == "response.function_call_arguments.done":
            assert parsed.name == "f"


def test_stored_items_match_the_official_clients_types() -> None:
    items: TypeAdapter[Any] = TypeAdapter(list[ResponseItem])
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, call]
    output = {"type": "function_call_output", "call_id": "c", "output": "4"}
    asked = ResponsesRequest.model_validate({"model": "m", "input": [*turns, output]})
    parsed = items.validate_json(items_to_json(with_ids(input_items(asked), "0")))
    assert [type(item).__name__ for item in parsed] == [
        "ResponseInputMessageItem",
        "ResponseOutputMessage",
        "ResponseFunctionToolCallItem",
        "ResponseFunctionToolCallOutputItem",
    ]
    assert not unknown(parsed)
