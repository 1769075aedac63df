"""`POST /v1/batches/validate`, answered by a clerk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from core.error_codes import remedy
from core.schemas.batch_validation import BatchValidation
from tests.support.check import check_problem
from tests.support.stack import StackProcess, batch_lines, result_lines, start_batch, wait_for, write_lines
from tests.support.wrong_lines import EXPECTED, summarize, write_wrong_lines

URL = "/v1/batches/validate"


def ask(http: httpx2.Client, path: Path, **fields: str) -> httpx2.Response:
    return http.post(URL, files={"file": (path.name, path.read_bytes())}, data=fields)


def test_an_uploaded_file_gets_all_its_errors_and_is_not_kept(
    http: httpx2.Client, client: OpenAI, tmp_path: Path
) -> None:
    before = {file.id for file in client.files.list()}
    answer = ask(http, write_wrong_lines(tmp_path / "in.jsonl"), endpoint="/v1/chat/completions")
    assert answer.status_code == 200, answer.text
    report = BatchValidation.model_validate_json(answer.text)
    assert summarize(answer.json()["errors"]) == EXPECTED
    assert all(error["remedy"] == remedy(error["code"]) for error in answer.json()["errors"])
    assert (report.is_valid, report.lines, report.lines_over_context) == (False, 12, 1)
    assert {file.id for file in client.files.list()} == before


BAD_SCHEMA: Any = {"type": "object", "properties": {"a": {"not": {}}}}
SCHEMA_OF_CHAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": BAD_SCHEMA}}
WRONG_BODIES: dict[Any, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"messages": [{"role": "user", "content": "hello"}], "response_format": SCHEMA_OF_CHAT},
        {"messages": [{"role": "user", "content": "hello"}], "structured_outputs": {"regex": "(a"}},
        {"messages": [{"role": "user", "content": "x" * 5000}]},
    ],
    "/v1/completions": [
        {"prompt": "hello", "response_format": SCHEMA_OF_CHAT},
        {"prompt": "hello", "structured_outputs": {"grammar": "start: oops"}},
        {"prompt": "x" * 5000},
    ],
    "/v1/responses": [
        {"input": "hello", "text": {"format": {"type": "json_schema", "name": "answer", "schema": BAD_SCHEMA}}},
        {"input": "x" * 5000},
    ],
}


@pytest.mark.parametrize("endpoint", WRONG_BODIES)
def test_a_validation_reports_the_errors_that_the_run_would_report(
    client: OpenAI, tmp_path: Path, endpoint: Any
) -> None:
    lines = [
        {"custom_id": f"{n}", "method": "POST", "url": endpoint, "body": {"model": "fake", **body}}
        for n, body in enumerate(WRONG_BODIES[endpoint], 1)
    ]
    with write_lines(tmp_path / "in.jsonl", lines).open("rb") as stream:
        file = client.files.create(file=stream, purpose="batch")
    report: Any = client.post("/batches/validate", body={"input_file_id": file.id}, cast_to=dict[str, Any])
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", "the batch")
    ran: list[Any] = result_lines(client, client.batches.retrieve(batch.id).error_file_id)
    errors_of_the_run = {line["custom_id"]: line["response"]["body"]["error"] for line in ran}
    assert len(errors_of_the_run) == len(lines)
    for error in report["errors"]:
        theirs = errors_of_the_run.pop(error["custom_id"])
        assert (error["code"], error["message"]) == (theirs["code"], theirs["message"])
        assert error["param"] == f"body.{theirs['param']}"
    assert errors_of_the_run == {}, "found too"


def test_the_official_client_can_ask_about_a_file_it_has_sent(client: OpenAI, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", batch_lines(5, max_tokens=8))
    with path.open("rb") as stream:
        file = client.files.create(file=stream, purpose="batch")
    report: Any = client.post("/batches/validate", body={"input_file_id": file.id}, cast_to=dict[str, Any])
    assert (report["object"], report["is_valid"], report["lines"]) == ("batch.validation", True, 5)
    assert report["models"][0]["max_output_tokens"] == 40
    assert client.files.retrieve(file.id).id == file.id


def test_time_is_estimated_from_batches_that_ended_here(client: OpenAI, http: httpx2.Client, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", batch_lines(20, max_tokens=8))
    batch_id = start_batch(client, path)
    wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch")
    found = ask(http, path).json()["estimate"]
    assert found["measured_batches"] >= 1
    assert found["tokens_per_second"] > 0
    assert found["seconds"] > 0
    assert found["finish_at"] > 0


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input_file_id": "file-nobodys"}, 404, None, "input_file_id"),
        ({"input_file_id": "../etc"}, 404, None, "input_file_id"),
        ({}, 400, "missing_required_parameter", "input_file_id"),
        ({"input_file_id": "file-a", "endpoint": "/v1/nothing"}, 400, "invalid_value", "endpoint"),
    ],
)
def test_a_bad_question_names_its_field(
    http: httpx2.Client, body: dict[str, Any], status: int, code: str | None, param: str
) -> None:
    check_problem(http.post(URL, json=body), status, code, param)


def test_a_bad_upload_names_its_field(http: httpx2.Client, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", batch_lines(1))
    check_problem(ask(http, path, endpoint="/v1/nothing"), 400, "invalid_value", "endpoint")
    check_problem(ask(http, path, purpose="vision"), 400, "invalid_file_purpose", "purpose")
    check_problem(
        http.post(URL, data={"a": "b"}, files={"other": ("a", b"")}), 400, "missing_required_parameter", "file"
    )
    check_problem(ask(http, write_lines(tmp_path / "in.json", [])), 400, "invalid_file_format", "file")
    big = write_lines(tmp_path / "big.jsonl", batch_lines(1500))
    assert len(json.dumps(batch_lines(1500))) > 200_000
    check_problem(ask(http, big), 413, "file_too_large", "file")


def test_the_published_api_has_the_report(server: StackProcess) -> None:
    published = httpx2.get(f"{server.url}/openapi.json").json()
    answer = published["paths"][URL]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["$ref"].endswith("/BatchValidation")
