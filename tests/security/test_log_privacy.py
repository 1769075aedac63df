"""Text of clients and secrets of the operator are in no log, metric or error, whatever happens to a request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import psycopg
import pytest

from cli.stack.services import Services, running_database, running_queue
from core.settings import Settings
from db.connections import database_engine
from tests.support.guarded import Guarded, Key
from tests.support.stack import batch_lines, wait_for
from workers.context import Database

MARKER = "quagga-7731"
MESSAGES: list[Any] = [
    {"role": "system", "content": f"Keep {MARKER} to yourself."},
    {"role": "user", "content": MARKER},
]


@pytest.fixture(scope="module")
def traffic(secured: Guarded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Key, list[str]]:
    """A key after requests that all contained MARKER, and the body of every error response to them."""
    key = secured.key("marked-tenant", scopes=["inference", "files"])
    errors: list[str] = []
    key.http.event_hooks["response"] = [lambda response: _record_error(response, errors)]
    chat = "/v1/chat/completions"
    key.client.chat.completions.create(model="fake", messages=MESSAGES)
    list(key.client.chat.completions.create(model="fake", messages=MESSAGES, stream=True))
    for body in (
        {"model": "fake", "messages": MESSAGES, "temperature": MARKER},
        {"model": "fake", "messages": [{"role": MARKER, "content": MARKER}]},
        {"model": "fake", "messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": MARKER}},
        {"model": "fake", "messages": MESSAGES, "chat_template": MARKER},
        {"model": "fake", "messages": [{"role": "user", "content": f"{MARKER} " * 2000}]},
        {"model": "fake", "messages": [{"role": "user", "content": f"<<segfault>> {MARKER}"}]},
        {"model": "fake", "messages": [{"role": "user", "content": f"<<raise>> {MARKER}"}]},
    ):
        assert key.http.post(chat, json=body).status_code >= 400, body
    key.http.post(chat, content=f'{{"model": "{MARKER}'.encode(), headers={"content-type": "application/json"})
    key.http.post("/v1/files", data={"purpose": MARKER}, files={"file": (f"{MARKER}.jsonl", MARKER.encode())})
    for content, prompt in ((MARKER, f"{{{{ '{MARKER}' "), ("", "{text}"), (f"text\n{MARKER}", "{text}{{ 1 // 0 }}")):
        mapping = json.dumps({"model": "fake", "prompt": prompt})
        sent = {"file": (f"{MARKER}.csv", content.encode())}
        assert key.http.post("/v1/batches/map", files=sent, data={"mapping": mapping}).status_code == 400
    wait_for(lambda: _is_answering(key), "the engine runs again")
    _run_batch(key, tmp_path_factory.mktemp("traffic"))
    return key, errors


def _record_error(response: httpx2.Response, errors: list[str]) -> None:
    if response.status_code >= 400:
        errors.append(response.read().decode())


def _is_answering(key: Key) -> bool:
    try:
        return bool(
            key.client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "?"}]).choices
        )
    except openai.APIStatusError:
        return False


def _run_batch(key: Key, folder: Path) -> None:
    """Run a batch named after MARKER with a line that is answered, one that is rejected and one that is too long."""
    good, bad, long = (batch_lines(3)[index] for index in range(3))
    for line, content in ((good, MARKER), (bad, MARKER), (long, MARKER * 1000)):
        line["custom_id"] = f"{line['custom_id']}-{MARKER}"
        line["body"] = {"model": "fake", "messages": [{"role": "user", "content": content}]}
    bad["body"]["temperature"] = 9  # type: ignore[index]
    path = folder / f"{MARKER}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (good, bad, long)))
    file = key.client.files.create(file=path, purpose="batch")
    batch = key.client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"about": MARKER},
    )
    wait_for(lambda: key.client.batches.retrieve(batch.id).status == "completed", "the batch completes")


def logs(secured: Guarded) -> Iterator[tuple[str, str]]:
    yield "stdout", secured.process.output
    for path in (secured.process.state_dir / "logs").glob("*.log"):
        yield path.name, path.read_text(errors="replace")


def test_no_log_contains_text_of_a_client(secured: Guarded, traffic: tuple[Key, list[str]]) -> None:
    read = dict(logs(secured))
    assert {"api.log", "chat.log", "batch.log", "clerk.log", "worker.log", "engine-fake.log", "postgres.log"} <= set(
        read
    )
    assert "child_exited" in read["worker.log"], "the engine crashed and that was logged"
    assert [name for name, text in read.items() if MARKER in text] == []


def test_no_log_contains_a_key_or_the_address_of_a_service(secured: Guarded, traffic: tuple[Key, list[str]]) -> None:
    key, _ = traffic
    state_dir = secured.process.state_dir
    secrets = [key.text, key.text.rpartition("-")[2], running_database(state_dir), running_queue(state_dir)]
    for name, text in logs(secured):
        assert [secret for secret in secrets if secret and secret in text] == [], name


def test_no_error_repeats_text_of_the_request(traffic: tuple[Key, list[str]]) -> None:
    _, errors = traffic
    assert len(errors) == 12
    assert [error for error in errors if MARKER in error] == []


def test_no_route_without_a_key_shows_text_of_a_client(secured: Guarded, traffic: tuple[Key, list[str]]) -> None:
    key, _ = traffic
    with secured.http(None) as http:
        for path in ("/metrics", "/readyz", "/healthz", "/openapi.json", "/docs"):
            text = http.get(path).text
            assert MARKER not in text
            assert key.text not in text
            assert "marked-tenant" not in text, "the name of the tenant"


def test_settings_do_not_show_passwords_in_addresses() -> None:
    settings = Settings(database_url="postgresql://me:hidden-1@host/db", redis_url="redis://:hidden-2@host/0")
    assert "hidden" not in f"{settings!r} {settings}"


def test_an_error_of_the_database_shows_no_parameters(database: Database) -> None:
    pool = database_engine("postgresql://me:hidden@127.0.0.1:9/none", pool_size=1)
    with pytest.raises(Exception, match="127") as caught, pool.connect():
        pass
    assert "hidden" not in str(caught.value)
    assert database.engine.hide_parameters
    assert pool.hide_parameters


def test_the_bundled_postgres_logs_errors_without_rows_and_statements(services: Services, database: Database) -> None:
    insert = f"INSERT INTO jobs (id, tenant_id, model, state, body) VALUES ('x', 't', 'm', 'completed', '{MARKER}')"
    with pytest.raises(psycopg.errors.CheckViolation), psycopg.connect(services.database_url) as connection:
        connection.execute(insert)
    log = (services.logs / "postgres.log").read_text()
    assert "violates check constraint" in log
    assert MARKER not in log
