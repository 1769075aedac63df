"""Models whose engine does not start, or that no worker serves: what the list, requests, batches and readiness show."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.services.model_states import ModelStates
from core.errors import ApiError
from core.models.live_catalog import LiveCatalog
from core.settings import Settings
from core.states import EngineState
from db.connections import async_database_engine
from tests.support.inside import inside
from tests.support.rows import make_batch, make_running_batch
from tests.support.worker_rows import report_clerk, report_engine
from workers.context import Database

REASON = "short.gguf is not a model that llama.cpp can load."
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with three models."""
    models = tmp_path / "models"
    models.mkdir()
    for name in ("whole", "short", "away"):
        text = f"name: {name}\nbackend: fake\nembeddings: true\naliases: [{name}-alias]\n"
        (models / f"{name}.yaml").write_text(text)
    return settings.model_copy(update={"models_dir": models})


@pytest.fixture
async def http(settings: Settings, database: Database, valkey: object) -> AsyncIterator[httpx2.AsyncClient]:
    report_clerk(database)
    report_engine(database, "whole", EngineState.READY, warning="It has no chat template.")
    report_engine(database, "short", EngineState.FAILED, reason=REASON)
    async with inside(settings) as http:
        yield http


async def test_every_model_shows_its_status_and_the_reason(http: httpx2.AsyncClient) -> None:
    models = {each["id"]: each for each in (await http.get("/v1/models")).json()["data"]}
    shown = {name: (model["status"], model["reason"]) for name, model in models.items() if "alias" not in name}
    assert shown == {
        "whole": ("ready", None),
        "short": ("failed", f"its engine does not start: {REASON}"),
        "away": ("unserved", "no chat worker serves it"),
    }
    assert models["whole"]["warning"] == "It has no chat template."
    assert (await http.get("/v1/models/short-alias")).json()["status"] == "failed"


async def test_a_model_shows_where_it_is_in_memory(http: httpx2.AsyncClient, database: Database) -> None:
    place: dict[str, Any] = {"device": "cuda:0", "memory_bytes": 1 << 33, "slots": 12, "context_size": 1024}
    report_engine(database, "whole", EngineState.READY, **place)
    report_engine(database, "short", EngineState.UNLOADED)
    shown = [(await http.get(f"/v1/models/{name}")).json() for name in ("whole-alias", "short", "away")]
    fields = ("root", "status", "device", "devices", "slots", "context_size", "memory_bytes")
    assert [tuple(each[field] for field in fields) for each in shown] == [
        ("whole", "ready", "cuda:0", ["cuda:0"], 12, 1024, 1 << 33),
        ("short", "unloaded", None, [], None, 2048, None),
        ("away", "unserved", None, [], None, 2048, None),
    ]
    assert shown[0]["aliases"] == ["whole-alias"]
    assert {"/v1/chat/completions", "/v1/embeddings"} <= set(shown[0]["endpoints"])


@pytest.mark.parametrize(
    ("name", "similar"), [("hwole", "whole"), ("WHOLE", "whole"), ("whole-alia", "whole-alias"), ("x" * 200, None)]
)
async def test_an_unknown_model_is_a_404_that_names_the_most_similar_one(
    http: httpx2.AsyncClient, name: str, similar: str | None
) -> None:
    chat = await http.post("/v1/chat/completions", json={"model": name, **CHAT})
    for answer in (await http.get(f"/v1/models/{name}"), chat):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        hint = f"; did you mean '{similar}'?" if similar else "."
        assert error["message"] == (
            f"The model '{name[:96]}' does not exist here{hint} Served models: away, short, whole."
        )


async def test_readiness_is_degraded_while_another_model_serves(http: httpx2.AsyncClient) -> None:
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["checks"]["model short"] == f"its engine does not start: {REASON}"
    assert set(ready.json()["advice"]) == {"model short", "model away"}


async def test_readiness_is_unavailable_without_any_model_that_serves(
    settings: Settings, database: Database, valkey: object
) -> None:
    report_clerk(database)
    report_engine(database, "short", EngineState.FAILED, reason=REASON)
    async with inside(settings) as http:
        ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True}),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/embeddings", {"input": "hello"}),
        ("/v1/responses", {"input": "hello"}),
        ("/v1/responses", {"input": "hello", "background": True}),
        ("/v1/jobs", CHAT),
    ],
)
@pytest.mark.parametrize("model", ["short", "short-alias"])
async def test_a_request_for_a_model_that_does_not_start_is_refused_at_once(
    http: httpx2.AsyncClient, path: str, body: dict[str, Any], model: str
) -> None:
    answer = await http.post(path, json={"model": model, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (503, "model_not_ready", "model")
    assert f"The model 'short' is not ready: its engine does not start: {REASON}" in error["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_a_model_that_no_worker_serves_is_waited_for_and_then_refused(
    settings: Settings, database: Database
) -> None:
    """A worker that restarts is back within seconds; one that is gone for `silence_seconds` may never be."""
    now = 0.0
    pool = async_database_engine(settings.database_url or "", pool_size=1)
    states = ModelStates(pool, LiveCatalog(settings.models_dir), settings, clock=lambda: now)
    report_engine(database, "whole", EngineState.READY)
    await states.check_startable("away")
    now = settings.silence_seconds - 1
    await states.check_startable("away")
    now = settings.silence_seconds + 1
    with pytest.raises(ApiError, match="no chat worker serves it") as refused:
        await states.check_startable("away")
    assert refused.value.problem.code == "model_not_ready"
    await states.check_startable("whole")
    report_engine(database, "away", EngineState.LOADING)
    now += 2
    await states.check_startable("away")
    await pool.dispose()


async def test_a_model_of_workers_that_start_when_work_waits_is_never_refused(
    settings: Settings, database: Database
) -> None:
    now = 0.0
    pool = async_database_engine(settings.database_url or "", pool_size=1)
    waiting = settings.model_copy(update={"chats_wait_for_workers": True})
    states = ModelStates(pool, LiveCatalog(settings.models_dir), waiting, clock=lambda: now)
    await states.check_startable("away")
    now = 10 * settings.silence_seconds
    await states.check_startable("away")
    report_engine(database, "short", EngineState.FAILED, reason=REASON)
    now += 2
    with pytest.raises(ApiError, match="its engine does not start"):
        await states.check_startable("short")
    await pool.dispose()


async def test_without_the_database_nothing_is_refused_and_the_status_is_unknown(settings: Settings) -> None:
    pool = async_database_engine("postgresql://nobody@127.0.0.1:1/none", pool_size=1)
    states = ModelStates(pool, LiveCatalog(settings.models_dir), settings)
    await states.check_startable("away")
    assert (await states.read()).model("away").status == "unknown"
    await pool.dispose()


async def test_a_batch_shows_what_it_waits_for(http: httpx2.AsyncClient, database: Database) -> None:
    expected = {
        "whole": None,
        "short": f"model short: its engine does not start: {REASON}",
        "away": "model away: no chat worker serves it",
        "gone": "model gone: no file in models_dir describes it",
    }
    with database.begin() as connection:
        made = {make_running_batch(connection, model=name)[0]: reason for name, reason in expected.items()}
    for batch_id, reason in made.items():
        assert (await http.get(f"/v1/batches/{batch_id}")).json()["waiting_for"] == reason
    listed = (await http.get("/v1/batches")).json()["data"]
    assert {each["id"]: each["waiting_for"] for each in listed} == made
    paused = next(batch_id for batch_id, reason in made.items() if reason)
    assert (await http.post(f"/v1/batches/{paused}/pause")).json()["waiting_for"] is None, "it waits for its resume"


async def test_a_batch_that_needs_a_clerk_waits_for_one(settings: Settings, database: Database, valkey: object) -> None:
    with database.begin() as connection:
        batch_id = make_batch(connection)
    async with inside(settings) as http:
        batch = (await http.get(f"/v1/batches/{batch_id}")).json()
    assert (batch["status"], batch["waiting_for"]) == ("validating", "a clerk: there is none")


async def test_readiness_names_a_model_without_a_file_that_lines_wait_for(
    http: httpx2.AsyncClient, database: Database
) -> None:
    with database.begin() as connection:
        make_running_batch(connection, model="gone")
    while (ready := (await http.get("/readyz")).json())["checks"]["queue"] != "ok":
        await asyncio.sleep(0.05)  # the relay connects after the start
    assert ready["status"] == "degraded"
    assert ready["checks"]["model gone"] == "no file in models_dir describes it"
