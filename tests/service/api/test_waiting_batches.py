"""Batches whose model is not in memory: their status, and an end that contains the load and the turns of others."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text

from core.settings import Settings
from core.states import EngineState
from db import model_loads
from tests.support.inside import inside
from tests.support.rows import make_running_batch
from tests.support.worker_rows import report_clerk, report_engine
from workers.context import Database

LOAD_SECONDS = 40.0
LINES_PER_SECOND = 2.0


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("here", "there", "new"):
        (models / f"{name}.yaml").write_text(f"name: {name}\nbackend: fake\nload: lazy\n")
    return settings.model_copy(update={"models_dir": models})


@pytest.fixture
async def http(settings: Settings, database: Database, valkey: object) -> AsyncIterator[httpx2.AsyncClient]:
    report_clerk(database)
    report_engine(database, "here", EngineState.READY)
    report_engine(database, "there", EngineState.UNLOADED)
    report_engine(database, "new", EngineState.UNLOADED)
    for model in ("here", "there"):
        measured(database, model)
    async with inside(settings) as http:
        yield http


def measured(database: Database, model: str) -> None:
    """Insert a completed batch of 100 lines, and a load."""
    completed = """
        UPDATE batches SET status = 'completed', model = :model, lines = 100, lines_completed = 100, completion_tokens = 100,
            in_progress_at = now() - interval '50 s', finalizing_at = now(), completed_at = now() WHERE id = :id"""
    with database.begin() as connection:
        batch_id, _ = make_running_batch(connection, [100], model=model)
        connection.execute(text("DELETE FROM jobs WHERE batch_id = :id"), {"id": batch_id})
        connection.execute(text("DELETE FROM shards WHERE batch_id = :id"), {"id": batch_id})
        connection.execute(text(completed), {"model": model, "id": batch_id})
        connection.execute(model_loads.record_load(model, "box", "cpu", LOAD_SECONDS))


def running(database: Database, model: str, lines: int) -> str:
    with database.begin() as connection:
        return make_running_batch(connection, [lines], model=model)[0]


async def test_a_batch_waits_for_the_turn_before_it_and_the_load(http: httpx2.AsyncClient, database: Database) -> None:
    first, second = running(database, "here", 200), running(database, "there", 60)
    batch, now = (await http.get(f"/v1/batches/{second}")).json(), time.time()
    assert (batch["status"], batch["waiting_for_model"]) == ("in_progress", "there")
    assert batch["waiting_for"] == "model there: it waits for its turn in memory"
    ready = 200 / LINES_PER_SECOND + LOAD_SECONDS
    assert batch["model_ready_at"] - now == pytest.approx(ready, abs=3)
    assert batch["eta_at"] - now == pytest.approx(ready + 60 / LINES_PER_SECOND, abs=3)
    assert batch["will_miss_window"] is False
    served = (await http.get(f"/v1/batches/{first}")).json()
    assert (served["waiting_for"], served["waiting_for_model"], served["model_ready_at"]) == (None, None, None)
    listed = {each["id"]: each["waiting_for_model"] for each in (await http.get("/v1/batches")).json()["data"]}
    assert (listed[first], listed[second]) == (None, "there")


async def test_an_end_after_the_window_is_announced(http: httpx2.AsyncClient, database: Database) -> None:
    batch_id = running(database, "there", 1_000)
    with database.begin() as connection:
        connection.execute(
            text("UPDATE batches SET expires_at = now() + interval '60 s' WHERE id = :id"), {"id": batch_id}
        )
    assert (await http.get(f"/v1/batches/{batch_id}")).json()["will_miss_window"] is True


async def test_the_end_of_a_model_that_was_never_measured_is_not_invented(
    http: httpx2.AsyncClient, database: Database
) -> None:
    batch = (await http.get(f"/v1/batches/{running(database, 'new', 60)}")).json()
    assert (batch["waiting_for_model"], batch["eta_at"]) == ("new", None)
    assert batch["model_ready_at"] is not None


async def test_a_batch_of_two_models_goes_on_while_one_of_them_is_in_memory(
    http: httpx2.AsyncClient, database: Database
) -> None:
    batch_id = running(database, "there", 2)
    with database.begin() as connection:
        moved = "UPDATE shards SET batch_id = :id, position = 9 WHERE batch_id = :other"
        other = make_running_batch(connection, [2], model="here")[0]
        connection.execute(text(moved), {"id": batch_id, "other": other})
    batch = (await http.get(f"/v1/batches/{batch_id}")).json()
    assert batch["waiting_for"] == "model there: it waits for its turn in memory"
    assert batch["waiting_for_model"] is None
