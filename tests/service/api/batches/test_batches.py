from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from core import ids
from tests.support.check import check_problem
from tests.support.stack import batch_lines, result_lines, start_batch, wait_for, write_lines

URL = "/v1/chat/completions"


def wait_until(client: OpenAI, batch_id: str, *statuses: str) -> Any:
    wait_for(lambda: client.batches.retrieve(batch_id).status in statuses, f"{batch_id} is {statuses}")
    return client.batches.retrieve(batch_id)


def run(client: OpenAI, tmp_path: Path, lines: list[dict[str, object]]) -> Any:
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", lines))
    return wait_until(client, batch_id, "completed", "failed")


def test_a_batch_from_upload_to_answers(client: OpenAI, tmp_path: Path) -> None:
    lines = batch_lines(300)
    batch = run(client, tmp_path, lines)
    assert (batch.status, batch.endpoint, batch.object) == ("completed", URL, "batch")
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (300, 300, 0)
    assert batch.metadata == {"test": "yes"}
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    assert batch.expires_at == batch.created_at + 86400
    output = result_lines(client, batch.output_file_id)
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
    assert batch.error_file_id is None
    answers: list[Any] = [line["response"] for line in output]
    assert {answer["status_code"] for answer in answers} == {200}
    total = sum(answer["body"]["usage"]["total_tokens"] for answer in answers)
    assert batch.usage.total_tokens == total > 0
    assert batch.model == "fake"


def test_a_batch_has_its_priority_and_the_end_of_its_window_from_its_creation(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("{oh\n")
    with path.open("rb") as stream:
        file = client.files.create(file=stream, purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")  # type: ignore[arg-type]
    assert batch.expires_at == batch.created_at + 86400
    assert wait_until(client, batch.id, "failed").expires_at == batch.expires_at
    urgent = client.batches.create(
        input_file_id=file.id,
        endpoint=URL,  # type: ignore[arg-type]
        completion_window="24h",
        extra_body={"priority": 100},
    )
    assert urgent.to_dict()["priority"] == 100


def test_any_id_of_a_batch_is_a_place_in_the_list(http: httpx2.Client, client: OpenAI, tmp_path: Path) -> None:
    """Ids sort by time, so a batch that is gone, or was never there, is a cursor."""
    mine = start_batch(client, write_lines(tmp_path / "in.jsonl", batch_lines(1)))
    now = http.get(f"/v1/batches?limit=1&after={ids.new_id(ids.BATCH)}").json()["data"]
    assert [one["id"] for one in now] == [mine]
    assert mine not in [one["id"] for one in http.get(f"/v1/batches?after={mine}").json()["data"]]


def test_a_line_has_the_answer_of_the_same_chat(client: OpenAI, tmp_path: Path) -> None:
    (line,) = batch_lines(1)
    batch = run(client, tmp_path, [line])
    (answer,) = result_lines(client, batch.output_file_id)
    in_batch = answer["response"]["body"]["choices"][0]["message"]["content"]  # type: ignore[index]
    messages: Any = line["body"]["messages"]  # type: ignore[index]
    assert in_batch == client.chat.completions.create(model="fake", messages=messages).choices[0].message.content


def test_every_line_ends_in_exactly_one_file(client: OpenAI, tmp_path: Path) -> None:
    lines = batch_lines(20)
    bad_bodies: list[dict[str, Any]] = [
        {},
        {"model": "fake"},
        {"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]},
        {"model": "fake", "messages": [{"role": "user", "content": "x" * 5000}]},
        {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": "many"},
        {"model": "fake", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
    ]
    for number, body in enumerate(bad_bodies):
        lines[3 * number]["body"] = body
    batch = run(client, tmp_path, lines)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (14, 6)
    output = [line["custom_id"] for line in result_lines(client, batch.output_file_id)]
    errors = result_lines(client, batch.error_file_id)
    assert sorted([*output, *(line["custom_id"] for line in errors)]) == sorted(line["custom_id"] for line in lines)  # type: ignore[type-var]
    statuses = [line["response"]["status_code"] for line in errors]  # type: ignore[index]
    assert statuses == [400, 400, 404, 400, 400, 400]
    codes = [line["response"]["body"]["error"]["code"] for line in errors]  # type: ignore[index]
    assert codes[2:4] == ["model_not_found", "context_length_exceeded"]


def test_an_unreadable_file_fails_the_batch_with_all_its_bad_lines(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    good = json.dumps(batch_lines(1)[0])
    path.write_text(f"{good}\n{{oh\n\n{good}\n[]\n")
    batch = wait_until(client, start_batch(client, path), "failed")
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "invalid_json_line"),
        (4, "duplicate_custom_id"),
        (5, "invalid_json_line"),
    ]
    assert batch.output_file_id is None
    assert batch.failed_at is not None


def test_a_cancelled_batch_keeps_its_finished_lines(client: OpenAI, tmp_path: Path) -> None:
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", batch_lines(200, "slow")))
    wait_for(lambda: client.batches.retrieve(batch_id).request_counts.completed > 0, "a line is done")  # type: ignore[union-attr]
    assert client.batches.cancel(batch_id).status == "cancelling"
    batch = wait_until(client, batch_id, "cancelled")
    done, failed = result_lines(client, batch.output_file_id), result_lines(client, batch.error_file_id)
    assert len(done) + len(failed) == 200
    assert 0 < len(done) == batch.request_counts.completed
    assert {line["error"]["code"] for line in failed} == {"batch_cancelled"}  # type: ignore[index]
    assert client.batches.cancel(batch_id).status == "cancelled", "asking twice is asking once"


def test_chat_is_answered_while_a_batch_runs(client: OpenAI, tmp_path: Path) -> None:
    batch_id = start_batch(client, write_lines(tmp_path / "in.jsonl", batch_lines(60, "slow")))
    wait_until(client, batch_id, "in_progress")
    answer = client.chat.completions.create(model="slow", messages=[{"role": "user", "content": "hi"}], max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert client.batches.retrieve(batch_id).status == "in_progress"
    client.batches.cancel(batch_id)
    wait_until(client, batch_id, "cancelled")


def test_a_finished_batch_cannot_be_cancelled(client: OpenAI, tmp_path: Path) -> None:
    batch = run(client, tmp_path, batch_lines(1))
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.cancel(batch.id)
    assert caught.value.code == "batch_not_cancellable"


def test_lists_come_newest_first_in_pages_that_join(client: OpenAI, tmp_path: Path) -> None:
    made = [run(client, tmp_path, batch_lines(1)).id for _ in range(3)]
    listed = [batch.id for batch in client.batches.list(limit=1)]
    assert listed[:3] == made[::-1]


def create(http: httpx2.Client, **change: Any) -> httpx2.Response:
    body = {"input_file_id": "file-1", "endpoint": URL, "completion_window": "24h", **change}
    return http.post("/v1/batches", json={key: value for key, value in body.items() if value is not ...})


def test_a_bad_create_is_refused_at_once(http: httpx2.Client, client: OpenAI) -> None:
    file = client.files.create(file=("a.txt", b"x"), purpose="user_data")
    check_problem(create(http, input_file_id=...), 400, "missing_required_parameter", "input_file_id")
    check_problem(create(http), 404, None, "input_file_id")
    check_problem(create(http, input_file_id=file.id), 400, "invalid_file_purpose", "input_file_id")
    check_problem(create(http, endpoint="/v1/images"), 400, "invalid_value", "endpoint")
    check_problem(create(http, completion_window="soon"), 400, "invalid_value", "completion_window")
    check_problem(create(http, metadata="x"), 400, "invalid_type", "metadata")


def test_unknown_batches_are_404s(http: httpx2.Client) -> None:
    check_problem(http.get("/v1/batches/batch_unknown"), 404, None, "batch_id")
    check_problem(http.post("/v1/batches/batch_unknown/cancel"), 404, None, "batch_id")
    check_problem(http.get("/v1/batches?after=batch_unknown"), 400, "invalid_value", "after")
