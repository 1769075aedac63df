from __future__ import annotations

import json

import pytest

from core.errors import ApiError, Problem
from core.queue.events import Event, EventKind, decode_event, encode_event
from core.schemas.base import parse_body
from core.schemas.batch import BatchCreate, answered_line, failed_line, unrun_line_problem, window_seconds

CREATE = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}


@pytest.mark.parametrize(
    ("window", "seconds"),
    [
        ("24h", 86400),
        ("90m", 5400),
        ("7d", 604800),
        ("31d", None),
        ("0h", None),
        ("24", None),
        ("", None),
        ("1w", None),
    ],
)
def test_windows(window: str, seconds: int | None) -> None:
    assert window_seconds(window) == seconds


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "metadata"),
        ({"metadata": {"k": 5}}, "metadata.k"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
        ({"input_file_id": None}, "input_file_id"),
        ({"priority": 101}, "priority"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_a_bad_create_names_the_field(change: dict[str, object], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(BatchCreate, CREATE | change)
    assert caught.value.problem.param == param


def test_an_answer_goes_out_as_it_was_stored() -> None:
    stored = '{"id": "x",   "zebra": 1, "a": [1.50]}'
    line = answered_line("batch_req_7", "mine", stored)
    assert stored.encode() in line
    value = json.loads(line)
    assert (value["id"], value["custom_id"], value["error"]) == ("batch_req_7", "mine", None)
    assert (value["response"]["status_code"], value["response"]["request_id"]) == (200, "req_7")


def test_a_refused_line_carries_what_the_sync_endpoint_would_say() -> None:
    problem = Problem(status=400, message="no", code="invalid_value", param="top_p")
    value = json.loads(failed_line("batch_req_7", "mine", problem))
    assert value["response"]["status_code"] == 400
    assert value["response"]["body"] == problem.envelope()
    assert value["error"] is None


def test_a_line_that_never_ran_has_no_response() -> None:
    value = json.loads(failed_line("batch_req_7", "mine", unrun_line_problem("batch_expired", "too late")))
    assert value["response"] is None
    assert value["error"] == {"code": "batch_expired", "message": "too late"}


def test_events_survive_the_wire() -> None:
    event = Event(
        job="chatcmpl-1", attempt=2, seq=7, kind=EventKind.FAILED, problem=Problem(status=500, message="x", code="y")
    )
    assert decode_event(encode_event(event)) == event
