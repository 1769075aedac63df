"""Isolation: every route of the app is requested without a key, and with ids of another tenant.

The routes are taken from the app itself, so that a new one is tested as well. Ids of all kinds of another tenant must get the
same response as ids that never existed.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from api.app import create_app
from core import ids
from core.api_keys import KEY
from core.schemas.responses.objects import RESPONSE
from core.settings import Settings
from db.webhooks import insert_webhook
from tests.support.check import check_problem
from tests.support.guarded import Guarded, Key
from tests.support.stack import batch_lines, start_batch, wait_for, write_lines

IDS = {
    "file_id": ids.FILE,
    "batch_id": ids.BATCH,
    "job_id": ids.CHAT,
    "response_id": RESPONSE,
    "completion_id": ids.CHAT,
    "webhook_endpoint_id": ids.WEBHOOK,
    "upload_id": ids.UPLOAD,
    "api_key_id": KEY,
}
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def routes() -> list[tuple[str, str]]:
    """The (method, path) of every route below /v1."""
    found = iter_route_contexts(create_app(Settings()).routes)
    return sorted(
        (method, route.path)
        for route in found
        if route.path and route.path.startswith("/v1/")
        for method in (route.methods or set()) - {"HEAD"}
    )


ROUTES = routes()
WITH_ID = [(method, path) for method, path in ROUTES if "{" in path]

ENDLESS = "/v1/batches/events"  # a stream that ends with its client


@pytest.fixture(scope="module")
def theirs(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One id of each kind, of another tenant."""
    key = guarded.key("victim")
    path = write_lines(tmp_path_factory.mktemp("theirs") / "in.jsonl", batch_lines(1))
    batch_id = start_batch(key.client, path)
    wait_for(lambda: key.client.batches.retrieve(batch_id).status == "completed", "the batch ends")
    job = key.http.post("/v1/jobs", json={"model": "fake", "messages": HELLO}).json()
    webhook_id = ids.new_id(ids.WEBHOOK)
    webhook = {"name": "secret", "url": "https://secret.example", "secret": "x", "events": "batch.completed"}
    with guarded.database.begin() as connection:
        insert_webhook(id=webhook_id, tenant_id="victim", **webhook).fetch_one(connection)
    return {
        "file_id": key.client.batches.retrieve(batch_id).input_file_id,
        "batch_id": batch_id,
        "job_id": job["id"],
        "response_id": key.client.responses.create(model="fake", input="hello").id,
        "completion_id": key.client.chat.completions.create(model="fake", messages=HELLO, store=True).id,
        "webhook_endpoint_id": webhook_id,
        "upload_id": key.client.uploads.create(bytes=1, filename="a.txt", mime_type="text/plain", purpose="evals").id,
        "api_key_id": key.id,
    }


@pytest.fixture(scope="module")
def stranger(guarded: Guarded) -> Key:
    return guarded.key("stranger", scopes=["admin"])


def ask(key: Key, method: str, path: str, first_id: str) -> httpx2.Response:
    """The path with this id as its first parameter, and harmless words as further ones."""
    filled = re.sub(r"\{[^}]+\}", "line-0", re.sub(r"\{[^}]+\}", first_id, path, count=1))
    body = {"event_type": "batch.completed", "part_ids": ["part_1"]}  # two routes need it, the others ignore it
    request = key.http.build_request(method, filled, json=body if method in ("POST", "PATCH", "PUT") else None)
    response = key.http.send(request, stream=True)
    if filled == ENDLESS:
        response.close()
    else:
        response.read()
    return response


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_route_answers_without_a_key(guarded: Guarded, method: str, path: str) -> None:
    with guarded.http(None) as http:
        check_problem(http.request(method, re.sub(r"\{[^}]+\}", "x", path)), 401, "invalid_api_key")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_declares_its_scope(guarded: Guarded, method: str, path: str) -> None:
    """A route without a scope requires ADMIN, as those of webhooks and keys do, and the one that loads models."""
    key = guarded.key(scopes=["inference", "files", "read-only"])
    is_closed = ask(key, method, path, "none").status_code == 403
    assert is_closed == (path.startswith(("/v1/webhook", "/v1/models", "/v1/api_keys")) and method != "GET")


@pytest.mark.parametrize(("route", "kind"), list(product(WITH_ID, IDS)), ids=str)
def test_an_id_of_another_tenant_is_an_unknown_id(
    stranger: Key, theirs: dict[str, str], route: tuple[str, str], kind: str
) -> None:
    unknown = ids.new_id(IDS[kind])
    foreign_answer, unknown_answer = (ask(stranger, *route, each) for each in (theirs[kind], unknown))
    assert foreign_answer.status_code == unknown_answer.status_code
    assert foreign_answer.text.replace(theirs[kind], "ID") == unknown_answer.text.replace(unknown, "ID")
    assert foreign_answer.status_code >= 400
    if f"{{{kind}}}" in route[1]:
        assert foreign_answer.status_code == 404


def test_objects_outlive_the_attempts_of_another_tenant(
    guarded: Guarded, stranger: Key, theirs: dict[str, str]
) -> None:
    for method, path in WITH_ID:
        for each in theirs.values():
            ask(stranger, method, path, each)
    key = guarded.key("victim", scopes=["admin"])
    assert key.client.batches.retrieve(theirs["batch_id"]).status == "completed"
    assert key.client.files.content(theirs["file_id"]).content
    assert key.http.get(f"/v1/jobs/{theirs['job_id']}").json()["status"] != "cancelled"
    assert key.http.get(f"/v1/api_keys/{theirs['api_key_id']}").json()["state"] == "valid"


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
def test_a_list_holds_nothing_of_others_wherever_it_starts(stranger: Key, theirs: dict[str, str], path: str) -> None:
    assert stranger.http.get(path).json()["data"] == []
    for foreign, unknown in ((theirs[kind], ids.new_id(prefix)) for kind, prefix in IDS.items()):
        answers = [stranger.http.get(path, params={"after": each}) for each in (foreign, unknown)]
        assert answers[0].status_code == answers[1].status_code
        assert answers[0].json() == answers[1].json()
        assert answers[0].status_code == 400 or answers[0].json()["data"] == []


def test_a_batch_cannot_read_a_file_of_another_tenant(stranger: Key, theirs: dict[str, str]) -> None:
    body = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    unknown = ids.new_id(ids.FILE)
    answers = [
        stranger.http.post("/v1/batches", json={**body, "input_file_id": each}) for each in (theirs["file_id"], unknown)
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].text.replace(theirs["file_id"], "ID") == answers[1].text.replace(unknown, "ID")


def test_usage_of_other_tenants_is_not_shown(stranger: Key, theirs: dict[str, str]) -> None:
    (bucket,) = stranger.http.get("/v1/usage", params={"group_by": "model"}).json()["data"]
    assert bucket["results"] == []
