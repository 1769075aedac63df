"""Models that are added, changed and removed while the api runs."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from api.app import create_app
from core.settings import Settings
from core.states import EngineState
from tests.support.model_files import write_model, write_weights
from tests.support.rows import make_running_batch
from tests.support.worker_rows import report_clerk, report_engine
from workers.context import Database


class Served:
    """An app of a models folder, and a client of it."""

    def __init__(self, app: FastAPI, http: httpx2.AsyncClient, folder: Path) -> None:
        self.app = app
        self.http = http
        self.folder = folder

    def refresh(self) -> None:
        """Look at the folder, as the app's thread does every second."""
        self.app.state.live_catalog.refresh()

    async def names(self) -> list[str]:
        return [each["id"] for each in (await self.get("/v1/models"))["data"]]

    async def get(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = (await self.http.get(path)).json()
        return answer


@asynccontextmanager
async def serving(settings: Settings, folder: Path) -> AsyncIterator[Served]:
    app = create_app(settings.model_copy(update={"models_dir": folder}))
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http,
    ):
        yield Served(app, http, folder)


@pytest.fixture
async def served(settings: Settings, database: Database, valkey: object, tmp_path: Path) -> AsyncIterator[Served]:
    """An app with the model `one`, and reports of workers that serve it and `two`."""
    report_clerk(database)
    for name in ("one", "two"):
        report_engine(database, name, EngineState.READY)
    folder = tmp_path / "models"
    folder.mkdir()
    write_model(folder, "one")
    async with serving(settings, folder) as app:
        yield app


async def test_a_model_is_served_from_its_file_to_its_removal(served: Served) -> None:
    write_model(served.folder, "two", aliases="[second]")
    write_weights(served.folder, "three")
    served.refresh()
    assert await served.names() == ["one", "three", "two", "second"]
    shown = await served.get("/v1/models/second")
    assert (shown["root"], shown["status"]) == ("two", "ready")
    ready = await served.get("/readyz")
    assert (ready["checks"]["model two"], ready["status"]) == ("ok", "degraded")
    assert 'model_ready{model="two"} 1.0' in (await served.http.get("/metrics")).text
    write_model(served.folder, "two", aliases="[other]", context_size=4096)
    served.refresh()
    assert (await served.get("/v1/models/other"))["context_size"] == 4096
    (served.folder / "two.yaml").unlink()
    served.refresh()
    assert await served.names() == ["one", "three"]
    assert (await served.http.get("/v1/models/two")).status_code == 404
    assert "model two" not in (await served.get("/readyz"))["checks"]
    refused = await served.http.post(
        "/v1/chat/completions", json={"model": "two", "messages": [{"role": "user", "content": "a"}]}
    )
    assert refused.status_code == 404


async def test_a_broken_file_changes_nothing_but_a_line_in_readyz(served: Served) -> None:
    (served.folder / "one.yaml").write_text("name: one\nbackend: gpt\n")
    (served.folder / "new\nline \udcff.gguf").write_bytes(b"GGUF")
    served.refresh()
    assert await served.names() == ["one"]
    ready = await served.get("/readyz")
    assert (ready["status"], ready["checks"]["model one"]) == ("ok", "ok")
    assert (
        ready["checks"]["file one.yaml"]
        == "one.yaml, line 2: backend must be llama, transformers, openai or fake, not 'gpt'."
    )
    assert "no restart is needed" in ready["advice"]["file one.yaml"]
    assert "new\\nline \\udcff.gguf cannot be served" in ready["checks"]["file new\\nline \\udcff.gguf"]


async def test_an_api_that_starts_beside_a_broken_file_serves_the_others(
    settings: Settings, database: Database, valkey: object, tmp_path: Path
) -> None:
    write_model(tmp_path, "one")
    (tmp_path / "two.yaml").write_text("name: [")
    async with serving(settings, tmp_path) as served:
        assert await served.names() == ["one"]
        assert "file two.yaml" in (await served.get("/readyz"))["checks"]
    assert all(thread.name != "models-folder" for thread in threading.enumerate()), "it stops with the app"


async def test_a_batch_says_that_its_model_has_gone_and_that_it_is_back(served: Served, database: Database) -> None:
    write_model(served.folder, "later")
    served.refresh()
    with database.begin() as connection:
        batch_id = make_running_batch(connection, model="later")[0]
    for is_there, reason in ((True, "no chat worker serves it"), (False, "no file in models_dir describes it")) * 2:
        if is_there:
            write_model(served.folder, "later")
        else:
            (served.folder / "later.yaml").unlink()
        served.refresh()
        assert (await served.get(f"/v1/batches/{batch_id}"))["waiting_for"] == f"model later: {reason}"
