"""Bodies for a server upstream: what is read of them, what reaches it, and the shape of its answers here."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from core.errors import ApiError
from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig
from core.schemas.endpoints import (
    CHAT_ENDPOINT,
    COMPLETIONS_ENDPOINT,
    EMBEDDINGS_ENDPOINT,
    ENDPOINTS,
    RESPONSES_ENDPOINT,
)
from engine.types import Choice, Embedded, Failed, Finished, FinishReason, ForwardRequest, Priority, ToolCall, Usage
from workers.generation.endpoints.base import EndpointAdapter, RequestOrigin, ResponseHeader
from workers.generation.endpoints.registry import FORWARD_ADAPTERS, read_adapter
from workers.generation.problems import to_problem

MODEL = ModelConfig(
    name="m",
    backend=BackendKind.OPENAI,
    base_url=("http://127.0.0.1:9/v1",),
    endpoints=("chat", "completions", "embeddings"),
)
HEADER = ResponseHeader(job_id="chatcmpl-1", model="m", fingerprint="fp_1")
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}


def adapter_of(body: dict[str, Any], endpoint: str = CHAT_ENDPOINT) -> EndpointAdapter:
    return read_adapter(endpoint, body, MODEL)


def forwarded(adapter: EndpointAdapter, priority: Priority = Priority.CHAT) -> ForwardRequest:
    origin = RequestOrigin(job_id="j", tenant="t", priority=priority, group="g")
    (request,) = adapter.engine_requests(MODEL, origin)
    assert isinstance(request, ForwardRequest)
    return request


def finished(*choices: Choice) -> Finished:
    return Finished(request_id="j", choices=list(choices), usage=Usage(prompt_tokens=5, completion_tokens=2))


def test_every_endpoint_has_an_adapter_for_a_server() -> None:
    assert set(FORWARD_ADAPTERS) == set(ENDPOINTS)


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        (CHAT_ENDPOINT, chat(temperature=99, unknown={"a": [1, None]}, chat_template="x", guided_json={}, top_k=-5)),
        (CHAT_ENDPOINT, {"model": "m", "messages": [{"role": "critic", "content": [IMAGE]}], "modalities": ["audio"]}),
        (CHAT_ENDPOINT, {"model": "m"}),
        (COMPLETIONS_ENDPOINT, {"model": "m", "prompt": ["a", "b"], "best_of": 4, "suffix": "x", "max_tokens": -1}),
        (EMBEDDINGS_ENDPOINT, {"model": "m", "input": "x", "encoding_format": "ubinary", "input_type": "query"}),
    ],
)
def test_a_body_reaches_the_server_as_it_came(endpoint: str, body: dict[str, Any]) -> None:
    request = forwarded(adapter_of(body, endpoint))
    assert json.loads(request.body) == body
    assert list(json.loads(request.body)) == list(body), "in its order"
    assert (request.path, request.tenant, request.group, request.stream) == (endpoint, "t", "g", False)


def test_only_a_live_request_is_streamed() -> None:
    adapter = adapter_of(chat(stream=True))
    assert forwarded(adapter).stream
    assert not forwarded(adapter, Priority.BATCH).stream


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": 5}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"store": "true"}, "store"),
        ({"store": True, "metadata": {"a": 1}}, "metadata"),
    ],
)
def test_the_fields_that_are_read_here_are_checked(more: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        adapter_of(chat(**more))
    assert (caught.value.problem.status, caught.value.problem.param) == (400, param)


@pytest.mark.parametrize(
    ("endpoint", "body", "tokens"),
    [
        (CHAT_ENDPOINT, chat(max_tokens=7, n=2), 14),
        (CHAT_ENDPOINT, chat(max_tokens=7, max_completion_tokens=9), 9),
        (CHAT_ENDPOINT, chat(max_tokens=-1), 0),
        (CHAT_ENDPOINT, chat(), 0),
        (COMPLETIONS_ENDPOINT, {"model": "m", "prompt": ["a", "b", "c"], "max_tokens": 2, "n": 2}, 12),
        (COMPLETIONS_ENDPOINT, {"model": "m", "prompt": [5, 6], "max_tokens": 2}, 2),
        (EMBEDDINGS_ENDPOINT, {"model": "m", "input": ["a"]}, 0),
    ],
)
def test_the_longest_answers_are_known_where_the_body_limits_them(
    endpoint: str, body: dict[str, Any], tokens: int
) -> None:
    assert adapter_of(body, endpoint).expected_tokens(MODEL) == tokens


def test_a_model_file_with_a_context_limits_the_answers() -> None:
    small = MODEL.model_copy(update={"context_size": 100})
    assert adapter_of(chat()).expected_tokens(small) == 100
    assert adapter_of(chat(max_tokens=500)).expected_tokens(small) == 100


@pytest.mark.parametrize(("given", "number"), [("x", 1), (["x", "y"], 2), ([1, 2], 1), ([[1], [2], [3]], 3), ([], 1)])
def test_inputs_are_counted(given: Any, number: int) -> None:
    assert adapter_of({"model": "m", "input": given}, EMBEDDINGS_ENDPOINT).num_inputs == number


@pytest.mark.parametrize(
    ("more", "is_deterministic"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": "0"}, False),
        ({"temperature": False}, False),
        ({"temperature": 0, "n": 2}, False),
        ({"temperature": 0, "stream": True}, False),
    ],
)
def test_only_single_greedy_lines_share_an_answer(more: dict[str, Any], *, is_deterministic: bool) -> None:
    assert adapter_of(chat(**more)).is_deterministic(MODEL) is is_deterministic


@pytest.mark.parametrize(
    ("more", "is_rejected"),
    [
        ({}, False),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, True),
        ({"guided_regex": "a+"}, True),
        ({"structured_outputs": {"choice": ["a"]}}, True),
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, True),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}}, False),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required"}}}, True),
        ({"tool_choice": ["required"]}, False),
    ],
)
def test_a_cut_answer_that_needed_a_structure_is_an_error_line(more: dict[str, Any], *, is_rejected: bool) -> None:
    cut = finished(Choice(reason=FinishReason.LENGTH, text='{"a'))
    problem = adapter_of(chat(**more)).reject_reason(cut)
    assert (problem is not None) is is_rejected
    whole = finished(Choice(reason=FinishReason.STOP, text='{"a": 1}'))
    assert adapter_of(chat(**more)).reject_reason(whole) is None


def test_an_answer_has_our_shape_with_all_that_is_kept() -> None:
    call = ToolCall(id="c1", name="f", arguments="{}")
    choice = Choice(reason=FinishReason.TOOL_CALLS, text="", reasoning="hm", tool_calls=[call])
    answer = json.loads(adapter_of(chat()).encode_response(HEADER, finished(choice)))
    (said,) = answer["choices"]
    assert (answer["id"], answer["model"], said["finish_reason"]) == ("chatcmpl-1", "m", "tool_calls")
    assert (said["message"]["reasoning_content"], said["message"]["tool_calls"][0]["id"]) == ("hm", "c1")


@pytest.mark.parametrize(("encoding", "expected"), [("float", [0.5, -1.0]), ("base64", "AAAAPwAAgL8=")])
def test_vectors_have_the_form_that_was_asked_for(encoding: str, expected: object) -> None:
    embedded = Embedded(
        request_id="j", vectors=[struct.pack("<2f", 0.5, -1.0)], usage=Usage(prompt_tokens=3, completion_tokens=0)
    )
    body = {"model": "m", "input": "x", "encoding_format": encoding}
    answer = json.loads(adapter_of(body, EMBEDDINGS_ENDPOINT).encode_response(HEADER, embedded))
    assert answer["data"][0]["embedding"] == expected


def test_a_line_of_the_responses_api_is_forwarded_as_the_chat_that_it_means() -> None:
    body = {"model": "m", "input": "hello", "instructions": "Be brief.", "max_output_tokens": 9}
    adapter = adapter_of(body, RESPONSES_ENDPOINT)
    request = forwarded(adapter)
    assert request.path == CHAT_ENDPOINT
    assert json.loads(request.body) == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "max_completion_tokens": 9,
    }
    answer = json.loads(adapter.encode_response(HEADER, finished(Choice(reason=FinishReason.STOP, text="hey"))))
    assert (answer["object"], answer["output"][0]["content"][0]["text"]) == ("response", "hey")
    failed = Failed(request_id="j", code="bad", message="'messages' is bad", param="messages", status=400)
    assert adapter.to_problem(failed).param == "input"


def test_lines_with_one_beginning_are_planned_together() -> None:
    system = {"role": "system", "content": "x" * 100}
    first, second = (
        list(adapter_of({"model": "m", "messages": [system, {"role": "user", "content": text}]}).prompt_texts())
        for text in ("a", "b")
    )
    assert first[0] == second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize(
    ("status", "code", "answered"),
    [
        (400, "context_length_exceeded", (400, "context_length_exceeded")),
        (422, "bad_param", (422, "bad_param")),
        (429, "rate_limit_exceeded", (429, "rate_limit_exceeded")),
        (500, "internal", (500, "internal")),
        (503, "overloaded", (503, "overloaded")),
        (401, "invalid_api_key", (502, "upstream_unauthorized")),
        (502, "upstream_unauthorized", (502, "upstream_unauthorized")),
        (403, "forbidden", (502, "upstream_unauthorized")),
        (407, "proxy", (502, "upstream_unauthorized")),
        (402, "insufficient_credits", (502, "upstream_account")),
        (404, "model_not_found", (502, "upstream_not_found")),
        (405, "method", (502, "upstream_not_found")),
    ],
)
def test_an_error_of_the_server_is_the_callers_only_where_the_request_is_the_cause(
    status: int, code: str, answered: tuple[int, str]
) -> None:
    failed = Failed(
        request_id="j", code=code, message="Incorrect API key provided: sk-12", status=status, retry_seconds=3.5
    )
    problem = to_problem(failed)
    assert (problem.status, problem.code) == answered
    is_operators = problem.status == 502
    assert ("sk-12" in problem.message) is not is_operators, "the words of a refused key are not passed on"
    assert ("operator" in problem.message) is is_operators
    assert problem.retry_seconds == (None if is_operators else 3.5)
