"""`Idempotency-Key`: a request that is sent several times creates one object."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from tests.support.check import check_problem
from tests.support.stack import StackProcess, batch_lines, write_lines


@pytest.fixture
def key() -> dict[str, str]:
    """A new key, as a header."""
    return {"Idempotency-Key": f"test-{uuid.uuid4()}"}


def upload(http: httpx2.Client, headers: dict[str, str], data: bytes = b"{}\n", **form: str) -> httpx2.Response:
    files = {"file": (form.pop("filename", "in.jsonl"), data)}
    return http.post("/v1/files", data={"purpose": "batch", **form}, files=files, headers=headers)


@pytest.fixture
def bodies(client: OpenAI, tmp_path: Path) -> dict[str, dict[str, object]]:
    """A valid body for each create with a JSON body."""
    with write_lines(tmp_path / "in.jsonl", batch_lines(1)).open("rb") as stream:
        file = client.files.create(file=stream, purpose="batch")
    return {
        "/v1/batches": {
            "input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"
        },
        "/v1/uploads": {"bytes": 1, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"},
        "/v1/jobs": {"model": "fake", "messages": [{"role": "user", "content": "Hello"}]},
        "/v1/responses": {"model": "fake", "input": "Hello", "background": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/batches", 200), ("/v1/uploads", 200), ("/v1/jobs", 202), ("/v1/responses", 200)]
)
def test_the_same_create_sent_twice_makes_one_object(
    http: httpx2.Client, bodies: dict[str, dict[str, object]], key: dict[str, str], path: str, status: int
) -> None:
    first, again = (http.post(path, json=bodies[path], headers=key) for _ in range(2))
    assert (first.status_code, again.status_code) == (status, status)
    assert first.json()["id"] == again.json()["id"]
    another = http.post(path, json=bodies[path])
    assert another.json()["id"] != first.json()["id"], "without a key each is new"


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/uploads", "/v1/jobs", "/v1/responses"])
def test_a_key_with_another_body_is_refused_for_good(
    http: httpx2.Client, bodies: dict[str, dict[str, object]], key: dict[str, str], path: str
) -> None:
    assert http.post(path, json=bodies[path], headers=key).is_success
    refused = http.post(path, json={**bodies[path], "metadata": {"a": "b"}}, headers=key)
    check_problem(refused, 409, "idempotency_key_reused", "Idempotency-Key")
    assert refused.headers["x-should-retry"] == "false"


def test_a_key_of_one_endpoint_is_refused_at_another(
    http: httpx2.Client, bodies: dict[str, dict[str, object]], key: dict[str, str]
) -> None:
    assert http.post("/v1/jobs", json=bodies["/v1/jobs"], headers=key).is_success
    other = http.post("/v1/uploads", json=bodies["/v1/uploads"], headers=key)
    check_problem(other, 409, "idempotency_key_reused", "Idempotency-Key")


def test_a_file_is_the_same_when_its_name_fields_and_content_are(http: httpx2.Client, key: dict[str, str]) -> None:
    data = b"x" * 150_000
    first, again = upload(http, key, data), upload(http, key, data)
    assert first.request.headers["content-type"] != again.request.headers["content-type"], "another boundary"
    assert again.json() == first.json()
    for other in (
        upload(http, key, data[:-1] + b"y"),
        upload(http, key, data, filename="other.jsonl"),
        upload(http, key, data, purpose="user_data"),
    ):
        check_problem(other, 409, "idempotency_key_reused", "Idempotency-Key")


def test_creates_at_the_same_time_make_one_object(
    http: httpx2.Client, client: OpenAI, bodies: dict[str, dict[str, object]], key: dict[str, str]
) -> None:
    body = {**bodies["/v1/batches"], "metadata": {"key": key["Idempotency-Key"]}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/batches", json=body, headers=key), range(8)))
    made = {answer.json()["id"] for answer in answers if answer.status_code == 200}
    assert len(made) == 1
    for answer in answers:
        if answer.status_code != 200:
            check_problem(answer, 409, "idempotency_key_in_use", "Idempotency-Key")
            assert answer.headers["x-should-retry"] == "true"
            assert answer.headers["retry-after"] == "1"
    assert [batch.id for batch in client.batches.list(limit=100) if batch.metadata == body["metadata"]] == list(made)


def test_a_refused_request_uses_up_no_key(
    http: httpx2.Client, bodies: dict[str, dict[str, object]], key: dict[str, str]
) -> None:
    wrong = {**bodies["/v1/batches"], "input_file_id": "file-0000"}
    check_problem(http.post("/v1/batches", json=wrong, headers=key), 404, None, "input_file_id")
    assert http.post("/v1/batches", json=bodies["/v1/batches"], headers=key).is_success


class LosesAnswers(httpx2.HTTPTransport):
    """A proxy that closes the connection before the first response of each path has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = super().handle_request(request)
        self.keys.append(request.headers["idempotency-key"])
        if len(self.keys) == 1:
            answer.read()
            raise httpx2.ReadError("lost", request=request)
        return answer


def test_a_file_whose_answer_was_lost_is_stored_once_when_the_client_tries_again(
    server: StackProcess, client: OpenAI, key: dict[str, str]
) -> None:
    name = f"{key['Idempotency-Key']}.jsonl"
    transport = LosesAnswers()
    with (
        httpx2.Client(transport=transport) as http_client,
        OpenAI(base_url=f"{server.url}/v1", api_key="any", http_client=http_client) as unlucky,
    ):
        file = unlucky.files.create(file=(name, b"{}\n"), purpose="batch", extra_headers=key)
    assert transport.keys == [key["Idempotency-Key"]] * 2
    assert [one.id for one in client.files.list(purpose="batch") if one.filename == name] == [file.id]


def test_the_object_of_a_key_may_be_gone(client: OpenAI, http: httpx2.Client, key: dict[str, str]) -> None:
    file_id = upload(http, key).json()["id"]
    client.files.delete(file_id)
    check_problem(upload(http, key), 404, None, "file_id")


@pytest.mark.parametrize("value", [b"", b"a" * 256, b"caf\xe9"])
def test_a_key_that_is_none_names_the_header(
    http: httpx2.Client, bodies: dict[str, dict[str, object]], value: bytes
) -> None:
    refused = http.post("/v1/jobs", json=bodies["/v1/jobs"], headers={b"Idempotency-Key": value})
    check_problem(refused, 400, "invalid_value", "Idempotency-Key")
