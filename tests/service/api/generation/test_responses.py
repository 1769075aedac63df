"""`/v1/responses` through the official client, on a running stack."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, Literal

import httpx2
import openai
import pytest
import redis
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.support.check import check_problem
from tests.support.stack import StackProcess, wait_for

URL = "/v1/responses"
SLOW: Any = {"model": "slow", "input": "hello", "background": True}
# the fake model never closes its string
ENDLESS: Any = {**SLOW, "text": {"format": {"type": "json_object"}}, "max_output_tokens": 2000}


class Ticket(BaseModel):
    """A schema for structured output."""

    urgent: bool
    kind: Literal["bug", "question"]


class Capital(BaseModel):
    """Looks up a capital."""

    country: Literal["France", "Italy"]


PARSED: Any = openai.pydantic_function_tool(Capital, name="capital")
CAPITAL: Any = {"type": "function", **PARSED["function"]}


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def ended(client: OpenAI, response_id: str) -> Any:
    wait_for(
        lambda: client.responses.retrieve(response_id).status not in ("queued", "in_progress"), "the response ends"
    )
    return client.responses.retrieve(response_id)


def test_a_response_has_the_text_of_the_same_chat(client: OpenAI) -> None:
    chat = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hello"}])
    response = client.responses.create(model="also-fake", input="hello", metadata={"a": "b"}, user="me")
    assert response.output_text == chat.choices[0].message.content
    assert (response.object, response.status, response.model) == ("response", "completed", "fake")
    assert (response.metadata, response.user, response.error) == ({"a": "b"}, "me", None)
    assert [item.type for item in response.output] == ["message"]
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response.id.startswith("resp_")
    assert client.responses.retrieve(response.id).to_dict() == response.to_dict()


async def test_the_async_client_gets_the_same(server: StackProcess, client: OpenAI) -> None:
    async def ask() -> str:
        async with (
            AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as asynchronous,
            asynchronous.responses.stream(model="fake", input="hello") as stream,
        ):
            return (await stream.get_final_response()).output_text

    assert await ask() == client.responses.create(model="fake", input="hello").output_text


def test_an_answer_that_was_cut_off_is_incomplete(client: OpenAI) -> None:
    response = client.responses.create(model="fake", input="hello", max_output_tokens=5)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert len(response.output_text) == 5
    *_, last = client.responses.create(model="fake", input="hello", max_output_tokens=5, stream=True)
    assert last.type == "response.incomplete"
    assert last.response.output_text == response.output_text


def test_a_stream_has_its_typed_events_in_order(client: OpenAI) -> None:
    plain = client.responses.create(model="fake", input="hello")
    events: list[Any] = list(client.responses.create(model="fake", input="hello", stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert all(one.sequence_number < two.sequence_number for one, two in pairwise(events))
    assert text_of(events) == events[-4].text == events[-1].response.output_text == plain.output_text
    assert client.responses.retrieve(events[0].response.id).to_dict() == events[-1].response.to_dict()


def test_the_clients_own_stream_adds_up_to_the_response(client: OpenAI) -> None:
    with client.responses.stream(model="fake", input="hello") as stream:
        *_, last_text = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.output_text == last_text


def test_a_stream_on_the_wire_names_its_events_and_has_no_ids(http: httpx2.Client) -> None:
    with http.stream("POST", URL, json={"model": "fake", "input": "hello", "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        raw = b"".join(response.iter_bytes()).decode()
    for event in raw.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"


def test_logprobs_are_included_on_request(client: OpenAI) -> None:
    request: Any = {
        "model": "fake",
        "input": "hello",
        "max_output_tokens": 5,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 1,
    }
    response: Any = client.responses.create(**request)
    logprobs = response.output[0].content[0].logprobs
    assert "".join(each.token for each in logprobs) == response.output_text
    assert logprobs[0].top_logprobs[0].token == logprobs[0].token
    events: list[Any] = list(client.responses.create(**request, stream=True))
    streamed = [each.token for event in events if event.type.endswith("text.delta") for each in event.logprobs]
    assert streamed == [each.token for each in logprobs]


def test_reasoning_is_a_separate_item(demo: OpenAI) -> None:
    response: Any = demo.responses.create(model="lab/thinker", input="hello", reasoning={"effort": "low"})
    thought, message = response.output
    assert (thought.type, message.type) == ("reasoning", "message")
    assert thought.content[0].text == "The wheel turns while the water runs."
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    events: list[Any] = list(demo.responses.create(model="lab/thinker", input="hello", stream=True))
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == thought.content[0].text
    assert text_of(events) == response.output_text
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]


def test_a_structured_answer_is_parsed(client: OpenAI) -> None:
    response = client.responses.parse(model="fake", input="hello", text_format=Ticket)
    assert isinstance(response.output_parsed, Ticket)
    with client.responses.stream(model="fake", input="hello", text_format=Ticket) as stream:
        stream.until_done()
        assert stream.get_final_response().output_parsed == response.output_parsed
    object_: Any = {"format": {"type": "json_object"}}
    anything = client.responses.create(model="fake", input="hello", text=object_, max_output_tokens=20)
    assert anything.output_text.startswith("{")


def test_a_call_its_output_and_the_answer_make_a_round_trip(demo: OpenAI) -> None:
    options: Any = {"model": "caller", "parallel_tool_calls": False}
    question: Any = {"role": "user", "content": "What is the capital of France?"}
    choice: Any = {"type": "function", "name": "capital"}
    first: Any = demo.responses.parse(input=[question], tools=[PARSED], tool_choice=choice, **options)
    (call,) = first.output
    assert isinstance(call.parsed_arguments, Capital)
    output: Any = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": "What is the capital of Italy?",
    }
    options |= {"tools": [CAPITAL], "tool_choice": "none"}
    second = demo.responses.create(input=[question, *first.output, output], **options)
    assert second.output_text == "The capital of Italy is Rome."
    kept = demo.responses.create(input=[output], previous_response_id=first.id, **options)
    assert kept.output_text == second.output_text


@pytest.mark.parametrize("parallel", [False, True])
def test_streamed_calls_add_up_to_the_ones_of_the_response(demo: OpenAI, parallel: bool) -> None:
    options: Any = {"input": "hello", "tool_choice": "required", "parallel_tool_calls": parallel}
    events: list[Any] = list(
        demo.responses.create(model="caller", tools=[CAPITAL], max_output_tokens=60, stream=True, **options)
    )
    final = events[-1].response
    calls = [item for item in final.output if item.type == "function_call"]
    assert calls
    for index, call in enumerate(final.output):
        if call.type != "function_call":
            continue
        mine = [event for event in events if getattr(event, "output_index", None) == index]
        assert mine[0].type == "response.output_item.added"
        assert (mine[0].item.name, mine[0].item.arguments) == ("capital", "")
        deltas = [event.delta for event in mine if event.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == call.arguments
        assert mine[-1].type == "response.output_item.done"


def test_a_conversation_goes_on_from_the_response_before_and_not_from_its_instructions(client: OpenAI) -> None:
    first = client.responses.create(model="fake", input="hello", instructions="Be brief.")
    second = client.responses.create(model="fake", input="And then?", previous_response_id=first.id)
    third = client.responses.create(model="fake", input="And then?", previous_response_id=second.id)
    turns: Any = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "And then?"},
    ]
    chat = client.chat.completions.create(model="fake", messages=turns)
    assert third.output_text == chat.choices[0].message.content
    assert chat.usage is not None
    assert third.usage is not None
    assert third.usage.input_tokens == chat.usage.prompt_tokens
    assert third.previous_response_id == second.id


def test_a_response_that_is_not_stored_cannot_be_read_or_continued(client: OpenAI) -> None:
    response = client.responses.create(model="fake", input="hello", store=False)
    assert response.output_text
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="fake", input="hello", previous_response_id=response.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


def test_one_in_the_background_is_queued_at_once_and_answered_later(client: OpenAI) -> None:
    queued = client.responses.create(model="fake", input="hello", background=True)
    assert (queued.status, queued.background, queued.output) == ("queued", True, [])
    response = ended(client, queued.id)
    assert response.status == "completed"
    assert response.output_text == client.responses.create(model="fake", input="hello").output_text


def test_one_that_has_no_answer_yet_cannot_be_gone_on_from(client: OpenAI) -> None:
    running = client.responses.create(**ENDLESS)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input="hello", previous_response_id=running.id)
    assert (caught.value.code, caught.value.param) == ("previous_response_not_completed", "previous_response_id")
    client.responses.delete(running.id)


def test_a_response_shows_its_request_parameters(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["b", None], "default": None}}}
    options: Any = {
        "instructions": "Be brief.",
        "text": {"format": {"type": "json_schema", "name": "s", "schema": schema}},
        "tools": [{"type": "function", "name": "f", "parameters": schema, "strict": True}],
        "tool_choice": "none",
        "temperature": 0.5,
        "max_output_tokens": 9,
        "reasoning": {"effort": "low"},
    }
    made = client.responses.create(model="fake", input="hello", **options)
    for response in (made.to_dict(), client.responses.retrieve(made.id).to_dict()):
        shown: Any = {name: response[name] for name in options}
        assert shown.pop("tools")[0].items() >= options["tools"][0].items()
        assert shown.pop("reasoning")["effort"] == "low"
        assert shown == {name: options[name] for name in shown}


def test_a_failed_background_response_has_its_error(client: OpenAI) -> None:
    queued = client.responses.create(model="fake", input="x" * 5000, background=True)
    response = ended(client, queued.id)
    assert (response.status, response.output) == ("failed", [])
    assert (response.error.code, response.error.param) == ("invalid_prompt", "input")
    *_, last = client.responses.retrieve(queued.id, stream=True)
    assert last.type == "response.failed"


def test_a_background_stream_is_left_and_taken_up_again_without_loss(client: OpenAI) -> None:
    events: list[Any] = []
    with client.responses.create(**SLOW, stream=True) as stream:
        for event in stream:
            events.append(event)
            if len(events) == 12:
                break
    response_id = events[0].response.id
    assert [event.type for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    last = events[-1].sequence_number
    rest: list[Any] = list(client.responses.retrieve(response_id, stream=True, starting_after=last))
    assert rest[0].sequence_number > last
    assert text_of(events + rest) == rest[-1].response.output_text
    with client.responses.stream(response_id=response_id) as again:
        assert again.get_final_response().output_text == rest[-1].response.output_text


def forget_frames(server: StackProcess) -> None:
    """Delete everything in Valkey."""
    (socket,) = server.state_dir.rglob("valkey*.sock")
    with redis.Redis(unix_socket_path=str(socket)) as valkey:
        valkey.flushall()


def test_a_stream_is_taken_up_from_the_row_when_its_frames_are_gone(server: StackProcess, client: OpenAI) -> None:
    events: list[Any] = list(client.responses.create(model="fake", input="hello", background=True, stream=True))
    forget_frames(server)
    response_id, places = events[0].response.id, [event.sequence_number for event in events]
    for place in (0, 3, places[len(places) // 2], places[-2]):
        rest: list[Any] = list(client.responses.retrieve(response_id, stream=True, starting_after=place))
        seen = [event for event in events if event.sequence_number <= place]
        assert text_of(seen + rest) == text_of(events)
        assert rest[-1].to_dict() == events[-1].to_dict()
    assert not list(client.responses.retrieve(response_id, stream=True, starting_after=places[-1]))


def test_a_late_stream_without_early_frames_comes_from_the_row(server: StackProcess, client: OpenAI) -> None:
    with client.responses.create(**SLOW, stream=True) as stream:
        events = iter(stream)
        early: list[Any] = [next(events) for _ in range(12)]
        forget_frames(server)
        late: list[Any] = list(client.responses.retrieve(early[0].response.id, stream=True))
        first: list[Any] = [*early, *events]
    assert text_of(late) == text_of(first) == first[-1].response.output_text
    assert late[0].type == "response.created"
    assert late[-1].to_dict() == first[-1].to_dict()


def test_a_running_one_is_cancelled_and_an_ended_one_stays(client: OpenAI) -> None:
    running = client.responses.create(**ENDLESS)
    wait_for(lambda: client.responses.retrieve(running.id).status == "in_progress", "it runs")
    client.responses.cancel(running.id)
    assert ended(client, running.id).status == "cancelled"
    done = ended(client, client.responses.create(model="fake", input="hello", background=True).id)
    assert client.responses.cancel(done.id).status == "completed"
    waited_for = client.responses.create(model="fake", input="hello")
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.cancel(waited_for.id)
    assert caught.value.code == "response_not_cancellable"


def test_deleting_a_response_deletes_its_job_and_ends_its_conversation(client: OpenAI, http: httpx2.Client) -> None:
    first = client.responses.create(model="fake", input="hello")
    second = client.responses.create(model="fake", input="more", previous_response_id=first.id)
    client.responses.delete(first.id)
    assert http.get(f"{URL}/{second.id}").status_code == 200
    check_problem(http.get(f"{URL}/{first.id}"), 404, None, "response_id")
    check_problem(http.get(f"/v1/jobs/chatcmpl-{first.id.removeprefix('resp_')}"), 404, None, "job_id")
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="fake", input="and?", previous_response_id=second.id)


def test_a_deleted_one_stops_running(client: OpenAI) -> None:
    with client.responses.create(**ENDLESS, stream=True) as stream:
        events = iter(stream)
        response_id = next(events).response.id
        assert client.responses.delete(response_id) is None
        *_, last = events
    assert last.type in ("error", "response.failed")


def test_input_items_are_listed_in_pages(client: OpenAI) -> None:
    call: Any = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "c", "output": "4"}
    turns: Any = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, call, output]
    response = client.responses.create(model="fake", input=[*turns, {"role": "user", "content": "c"}])
    items: list[Any] = list(client.responses.input_items.list(response.id, limit=2, order="asc"))
    assert [item.type for item in items] == ["message", "message", "function_call", "function_call_output", "message"]
    assert (items[0].content[0].text, items[1].content[0].text, items[4].content[0].text) == ("a", "b", "c")
    assert (items[1].role, items[3].output) == ("assistant", "4")
    assert len({item.id for item in items}) == 5
    newest = client.responses.input_items.list(response.id, limit=1)
    assert (newest.data[0].id, newest.has_more) == (items[4].id, True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_a_400_about_the_input(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="fake", input="x" * 5000, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


BAD: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    "no input": ({"model": "fake"}, 400, "missing_required_parameter", "input"),
    "an unknown model": ({"model": "gpt-9", "input": "hi"}, 404, "model_not_found", "model"),
    "a hosted tool": (
        {"model": "fake", "input": "hi", "tools": [{"type": "mcp"}]},
        400,
        "unsupported_parameter",
        "tools[0]",
    ),
    "a choice of no tool": (
        {"model": "fake", "input": "hi", "tool_choice": {"type": "function", "name": "f"}},
        400,
        "invalid_value",
        "tool_choice",
    ),
    "tools for a model that shows none": (
        {"model": "fake", "input": "hi", "tools": [{"type": "function", "name": "f"}]},
        400,
        "template_error",
        "tools",
    ),
    "no such previous one": (
        {"model": "fake", "input": "hi", "previous_response_id": "resp_none"},
        404,
        "previous_response_not_found",
        "previous_response_id",
    ),
    "a schema nobody can follow": (
        {
            "model": "fake",
            "input": "hi",
            "text": {"format": {"type": "json_schema", "name": "s", "schema": {"type": "nothing"}}},
        },
        400,
        "invalid_schema",
        "text.format",
    ),
}


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_answered_with_the_envelope(
    http: httpx2.Client, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    check_problem(http.post(URL, json=body), status, code, param)


def test_unknown_ids_and_bad_queries_are_answered_with_the_envelope(http: httpx2.Client, client: OpenAI) -> None:
    for path in ("resp_none", "resp_none/input_items", "!"):
        check_problem(http.get(f"{URL}/{path}"), 404, None, "response_id")
    check_problem(http.post(f"{URL}/resp_none/cancel"), 404, None, "response_id")
    check_problem(http.delete(f"{URL}/resp_none"), 404, None, "response_id")
    known = f"{URL}/{client.responses.create(model='fake', input='hello').id}"
    check_problem(http.get(f"{known}?starting_after=1"), 400, "invalid_value", "starting_after")
    check_problem(http.get(f"{known}?stream=true&starting_after=x"), 400, "invalid_value", "starting_after")
    check_problem(http.get(f"{known}/input_items?after=msg_none"), 400, "invalid_value", "after")
    check_problem(http.get(f"{known}/input_items?limit=0"), 400, "invalid_value", "limit")


def test_input_tokens_are_those_of_the_response_with_template_tools_and_history(
    client: OpenAI, http: httpx2.Client
) -> None:
    first = client.responses.create(model="fake", input="hello", instructions="Be brief.")
    requests: list[Any] = [
        {"input": "hello", "instructions": "Be brief."},
        {
            "input": [
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "hi"},
                {"role": "user", "content": "x"},
            ]
        },
        {"input": "more", "previous_response_id": first.id},
    ]
    for asked in requests:
        counted = client.responses.input_tokens.count(model="fake", **asked)
        assert counted.object == "response.input_tokens"
        response = client.responses.create(model="fake", **asked)
        assert response.usage is not None
        assert counted.input_tokens == response.usage.input_tokens
    long = client.responses.input_tokens.count(model="fake", input="x" * 9000)
    assert long.input_tokens > 9000, "also of a prompt that does not fit"
    check_problem(
        http.post("/v1/responses/input_tokens", json={"model": "gpt-9", "input": "x"}), 404, "model_not_found", "model"
    )
    check_problem(
        http.post("/v1/responses/input_tokens", json={"model": "fake", "input": 5}), 400, "invalid_type", "input"
    )
