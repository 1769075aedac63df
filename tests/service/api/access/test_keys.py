"""Keys over HTTP: authentication, scopes, and the errors of refused requests."""

from __future__ import annotations

import json
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from openai import OpenAI

from db import keys
from tests.support.check import check_problem
from tests.support.guarded import Guarded
from tests.support.stack import batch_lines, result_lines, start_batch, wait_for, write_lines

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def test_without_a_key_in_the_database_this_machine_needs_none(http: httpx2.Client) -> None:
    assert http.get("/v1/models").status_code == 200
    assert http.get("/v1/models", headers={"authorization": "Bearer whatever"}).status_code == 200


def test_a_machine_elsewhere_is_refused_while_there_is_no_key(http: httpx2.Client) -> None:
    """A proxy on this machine sends the address of its client."""
    check_problem(http.get("/v1/models", headers={"x-forwarded-for": "203.0.113.9"}), 401, "invalid_api_key")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer nonsense",
        b"Basic c2stYTpi",
        b"Bearer sk-\xff\xfe",
        b"Bearer ' OR 1=1 --",
        b"Bearer two words",
        b"Bearer " + b"x" * 100_000,
    ],
)
def test_every_wrong_key_gets_the_same_answer(guarded: Guarded, header: bytes) -> None:
    with guarded.http(None) as http:
        expected = check_problem(http.get("/v1/models"), 401, "invalid_api_key")
        response = http.get("/v1/models", headers=[(b"authorization", header)])
        assert check_problem(response, 401, "invalid_api_key") == expected
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_key_with_a_byte_that_no_header_may_have_ends_at_the_door(guarded: Guarded) -> None:
    at = urlsplit(guarded.url)
    with socket.create_connection((at.hostname, at.port), timeout=30) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-\x00\r\n\r\n")
        assert connection.makefile("rb").readline() == b"HTTP/1.1 400 Bad Request\r\n"
    assert guarded.owner.http.get("/v1/models").status_code == 200


def test_a_remote_address_that_tries_keys_is_limited_and_no_other_client(guarded: Guarded) -> None:
    elsewhere = {"x-forwarded-for": "203.0.113.77"}
    with guarded.http("sk-guess") as http:
        statuses = [http.get("/v1/models", headers=elsewhere).status_code for _ in range(62)]
        assert statuses[:60] == [401] * 60
        assert 429 in statuses[60:]
        check_problem(http.get("/v1/models", headers={"x-forwarded-for": "203.0.113.78"}), 401, "invalid_api_key")
    assert guarded.owner.http.get("/v1/models", headers=elsewhere).status_code == 200


def test_a_key_in_the_query_is_not_looked_at(guarded: Guarded) -> None:
    with guarded.http(None) as http:
        check_problem(http.get(f"/v1/models?api_key={guarded.owner.text}"), 401, "invalid_api_key")


def test_the_official_client_raises_the_error_of_its_key(guarded: Guarded) -> None:
    with (
        OpenAI(base_url=f"{guarded.url}/v1", api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert "sk-wrong" not in str(caught.value)
    with pytest.raises(openai.PermissionDeniedError) as denied:
        guarded.key(scopes=["files"]).client.chat.completions.create(model="fake", messages=HELLO)
    assert denied.value.code == "insufficient_permissions"


def test_a_revoked_and_an_expired_key_are_refused_like_an_unknown_one(guarded: Guarded) -> None:
    with guarded.http(None) as http:
        expected = http.get("/v1/models").json()
    revoked, expired = guarded.key(), guarded.key(expires_at="2026-01-01")
    assert revoked.http.get("/v1/models").status_code == 200
    with guarded.database.begin() as connection:
        connection.execute(keys.revoke_key(revoked.id)).one()
    assert revoked.http.get("/v1/models").json() == expected
    assert expired.http.get("/v1/models").json() == expected


SCOPES = {
    "inference": {"chat": 400, "upload": 403, "files": 403, "batches": 200, "create": 400, "models": 200, "usage": 403},
    "files": {"chat": 403, "upload": 415, "files": 200, "batches": 403, "create": 403, "models": 200, "usage": 403},
    "read-only": {"chat": 403, "upload": 403, "files": 200, "batches": 200, "create": 403, "models": 200, "usage": 200},
    "admin": {"chat": 400, "upload": 415, "files": 200, "batches": 200, "create": 400, "models": 200, "usage": 200},
}
CALLS = {
    "chat": ("POST", "/v1/chat/completions"),
    "upload": ("POST", "/v1/files"),
    "files": ("GET", "/v1/files"),
    "batches": ("GET", "/v1/batches"),
    "create": ("POST", "/v1/batches"),
    "models": ("GET", "/v1/models"),
    "usage": ("GET", "/v1/usage"),
}


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_opens_its_routes_and_no_others(guarded: Guarded, scope: str) -> None:
    key = guarded.key(scopes=[scope])
    answers = {
        name: key.http.request(method, path, json={} if method == "POST" else None)
        for name, (method, path) in CALLS.items()
    }
    assert {name: answer.status_code for name, answer in answers.items()} == SCOPES[scope]
    for answer in answers.values():
        if answer.status_code == 403:
            check_problem(answer, 403, "insufficient_permissions")


def test_machines_that_watch_need_no_key(guarded: Guarded) -> None:
    with guarded.http(None) as http:
        assert [http.get(path).status_code for path in ("/healthz", "/readyz", "/metrics", "/docs")] == [200] * 4


def test_a_model_that_is_not_allowed_does_not_exist(guarded: Guarded) -> None:
    key = guarded.key(models=["other"])
    assert [model.id for model in key.client.models.list()] == ["other"]
    with pytest.raises(openai.NotFoundError):
        key.client.models.retrieve("fake")
    answers = [
        key.http.post("/v1/chat/completions", json={"model": name, "messages": HELLO}) for name in ("fake", "none")
    ]
    said = [check_problem(answer, 404, "model_not_found", "model")["message"] for answer in answers]
    assert said[0].replace("'fake'", "'none'") == said[1]
    mapping = json.dumps({"model": "fake", "prompt": "{text}"})
    sent: Any = {"files": {"file": ("a.csv", b"text\nx\n")}, "data": {"mapping": mapping}}
    check_problem(key.http.post("/v1/batches/map/preview", **sent), 404, "model_not_found", "mapping.model")
    assert key.client.chat.completions.create(model="other", messages=HELLO).choices


def test_a_line_whose_model_is_not_allowed_fails_alone(guarded: Guarded, tmp_path: Path) -> None:
    key = guarded.key(models=["other"])
    lines = [*batch_lines(2, "other"), *batch_lines(3, "fake")[2:]]
    batch_id = start_batch(key.client, write_lines(tmp_path / "in.jsonl", lines))
    wait_for(lambda: key.client.batches.retrieve(batch_id).status == "completed", "the batch ends")
    batch = key.client.batches.retrieve(batch_id)
    assert [line["custom_id"] for line in result_lines(key.client, batch.output_file_id)] == ["line-0", "line-1"]
    (failed,) = result_lines(key.client, batch.error_file_id)
    assert failed["custom_id"] == "line-2"
    assert failed["response"]["status_code"] == 404  # type: ignore[index]
    assert failed["response"]["body"]["error"]["code"] == "model_not_found"  # type: ignore[index]


def test_a_batch_that_a_key_began_is_finished_when_it_is_revoked(guarded: Guarded, tmp_path: Path) -> None:
    key, reader = guarded.key(), guarded.key()
    batch_id = start_batch(key.client, write_lines(tmp_path / "in.jsonl", batch_lines(10, "slow", max_tokens=10)))
    with guarded.database.begin() as connection:
        connection.execute(keys.revoke_key(key.id)).one()
    with pytest.raises(openai.AuthenticationError):
        key.client.batches.retrieve(batch_id)
    wait_for(lambda: reader.client.batches.retrieve(batch_id).status == "completed", "the batch ends")


def test_usage_is_grouped_by_key_model_and_day(guarded: Guarded, tmp_path: Path) -> None:
    chat, batch, admin = (
        guarded.key("counted", scopes=[scope, "files"]) for scope in ("inference", "inference", "admin")
    )
    usage = chat.client.chat.completions.create(model="fake", messages=HELLO).usage
    assert usage is not None
    batch_id = start_batch(batch.client, write_lines(tmp_path / "in.jsonl", batch_lines(3, "other")))
    wait_for(lambda: batch.client.batches.retrieve(batch_id).status == "completed", "the batch ends")
    page = admin.http.get("/v1/usage", params={"group_by": "key,model"}).json()
    assert (page["object"], page["has_more"], page["next_page"]) == ("page", False, None)
    (bucket,) = page["data"]
    found = {(each["api_key_id"], each["model"]): each for each in bucket["results"]}
    assert {key: each["num_model_requests"] for key, each in found.items()} == {
        (chat.id, "fake"): 1,
        (batch.id, "other"): 3,
    }
    assert found[chat.id, "fake"]["input_tokens"] == usage.prompt_tokens
    assert found[chat.id, "fake"]["output_tokens"] == usage.completion_tokens
    days = admin.http.get("/v1/usage", params={"group_by": "day"}).json()["data"]
    assert [sum(each["num_model_requests"] for each in day["results"]) for day in days][-1] == 4
    assert len(days) == 30
    assert all(later["start_time"] == day["end_time"] for day, later in pairwise(days))


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"start": "yesterday"}, "start"),
        ({"end": "99999999999999999"}, "end"),
        ({"group_by": "colour"}, "group_by"),
        ({"start": "2026-02-01", "end": "2026-01-01"}, "start"),
        ({"start": "2020-01-01", "end": "2026-01-01"}, "start"),
    ],
)
def test_a_span_that_is_none_is_refused_by_name(http: httpx2.Client, query: dict[str, str], param: str) -> None:
    check_problem(http.get("/v1/usage", params=query), 400, "invalid_value", param)


def test_no_key_is_in_any_log(guarded: Guarded) -> None:
    wrong = "sk-00000000-" + "ab" * 32
    with guarded.http(wrong) as http:
        assert wrong not in http.get("/v1/models").text
        http.get(f"/v1/files?api_key={wrong}")
    guarded.owner.http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    logs = "".join(path.read_text() for path in (guarded.process.state_dir / "logs").glob("*.log"))
    for text in (wrong, guarded.owner.text, guarded.owner.text.rpartition("-")[2]):
        assert text not in logs
        assert text not in guarded.process.output
    assert guarded.owner.text not in json.dumps(guarded.owner.http.get("/openapi.json").json())
