"""Words of clients and secrets of the operator are in no log, no metric and no error, whatever happens to a request."""

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
SAYS: list[Any] = [{"role": "system", "content": f"Keep {MARKER} to yourself."}, {"role": "user", "content": MARKER}]


@pytest.fixture(scope="module")
def spoken(secured: Guarded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Key, list[str]]:
    """A key with which all of this was said, and the bodies of every error that came back."""
    key = secured.key("speaker", scopes=["inference", "files"])
    errors: list[str] = []
    key.http.event_hooks["response"] = [lambda response: _keep(response, errors)]
    chat = "/v1/chat/completions"
    key.client.chat.completions.create(model="fake", messages=SAYS)
    list(key.client.chat.completions.create(model="fake", messages=SAYS, stream=True))
    for body in (
        {"model": "fake", "messages": SAYS, "temperature": MARKER},
        {"model": "fake", "messages": [{"role": MARKER, "content": MARKER}]},
        {"model": "fake", "messages": SAYS, "response_format": {"type": "json_schema", "json_schema": MARKER}},
        {"model": "fake", "messages": SAYS, "chat_template": MARKER},
        {"model": "fake", "messages": [{"role": "user", "content": f"{MARKER} " * 2000}]},
        {"model": "fake", "messages": [{"role": "user", "content": f"<<segfault>> {MARKER}"}]},
        {"model": "fake", "messages": [{"role": "user", "content": f"<<raise>> {MARKER}"}]},
    ):
        assert key.http.post(chat, json=body).status_code >= 400, body
    key.http.post(chat, content=f'{{"model": "{MARKER}'.encode(), headers={"content-type": "application/json"})
    key.http.post("/v1/files", data={"purpose": MARKER}, files={"file": (f"{MARKER}.jsonl", MARKER.encode())})
    wait_for(lambda: _answers(key), "the engine is back")
    _run_batch(key, tmp_path_factory.mktemp("spoken"))
    return key, errors


def _keep(response: httpx2.Response, errors: list[str]) -> None:
    if response.status_code >= 400:
        errors.append(response.read().decode())


def _answers(key: Key) -> bool:
    try:
        return bool(
            key.client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "?"}]).choices
        )
    except openai.APIStatusError:
        return False


def _run_batch(key: Key, folder: Path) -> None:
    """One of lines that are answered, refused and too long, under a name of its own."""
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
    wait_for(lambda: key.client.batches.retrieve(batch.id).status == "completed", "the batch ends")


def logs(secured: Guarded) -> Iterator[tuple[str, str]]:
    yield "stdout", secured.process.said
    for path in (secured.process.state_dir / "logs").glob("*.log"):
        yield path.name, path.read_text(errors="replace")


def test_no_log_has_a_word_of_a_client(secured: Guarded, spoken: tuple[Key, list[str]]) -> None:
    read = dict(logs(secured))
    assert {"api.log", "chat.log", "batch.log", "clerk.log", "worker.log", "engine-fake.log", "postgres.log"} <= set(
        read
    )
    assert "child_died" in read["worker.log"], "the engine did crash, and that was logged"
    assert [name for name, text in read.items() if MARKER in text] == []


def test_no_log_has_a_key_or_an_address_of_a_service(secured: Guarded, spoken: tuple[Key, list[str]]) -> None:
    key, _ = spoken
    state_dir = secured.process.state_dir
    secrets = [key.text, key.text.rpartition("-")[2], running_database(state_dir), running_queue(state_dir)]
    for name, text in logs(secured):
        assert [secret for secret in secrets if secret and secret in text] == [], name


def test_no_error_repeats_what_was_said(spoken: tuple[Key, list[str]]) -> None:
    _, errors = spoken
    assert len(errors) == 9
    assert [error for error in errors if MARKER in error] == []


def test_what_needs_no_key_has_no_word_of_a_client(secured: Guarded, spoken: tuple[Key, list[str]]) -> None:
    key, _ = spoken
    with secured.http(None) as http:
        for path in ("/metrics", "/readyz", "/healthz", "/openapi.json", "/docs"):
            text = http.get(path).text
            assert MARKER not in text
            assert key.text not in text
            assert "speaker" not in text, "the tenant"


def test_settings_do_not_show_what_is_in_addresses() -> None:
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
