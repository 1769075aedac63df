"""Admins load, unload and reload models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text

from core.readiness import too_large
from core.settings import Settings
from core.states import EngineState
from tests.support.inside import inside
from tests.support.worker_rows import report_engine
from workers.context import Database


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    models = tmp_path / "models"
    models.mkdir()
    (models / "small.yaml").write_text("name: lab/small\nbackend: fake\naliases: [little]\nload: lazy\n")
    (models / "fixed.yaml").write_text("name: fixed\nbackend: fake\npinned: true\n")
    (models / "load.yaml").write_text("name: lab/small/load\nbackend: fake\n")
    return settings.model_copy(update={"models_dir": models})


@pytest.fixture
async def http(settings: Settings, database: Database, valkey: object) -> AsyncIterator[httpx2.AsyncClient]:
    report_engine(database, "lab/small", EngineState.UNLOADED)
    report_engine(database, "fixed", EngineState.READY)
    async with inside(settings) as http:
        yield http


def requested(database: Database) -> dict[str, tuple[bool, bool]]:
    with database.begin() as connection:
        rows = connection.execute(text("SELECT model, load_at IS NOT NULL, unload_at IS NOT NULL FROM model_requests"))
        return {model: (is_load, is_unload) for model, is_load, is_unload in rows}


@pytest.mark.parametrize(
    ("action", "written", "status"),
    [
        ("load", (True, False), "loading"),
        ("unload", (False, True), "unloaded"),
        ("reload", (True, True), "loading"),
        ("pin", (True, False), "loading"),
        ("unpin", (False, False), "unloaded"),
    ],
)
@pytest.mark.parametrize("name", ["lab/small", "little", "lab%2Fsmall"])
async def test_an_action_is_accepted_and_stored_for_the_launchers(
    http: httpx2.AsyncClient, database: Database, name: str, action: str, written: tuple[bool, bool], status: str
) -> None:
    answer = await http.post(f"/v1/models/{name}/{action}")
    assert answer.status_code == 202, answer.text
    shown = answer.json()
    assert (shown["root"], shown["status"], shown["load_requested"]) == ("lab/small", status, written[0])
    assert requested(database) == {"lab/small": written}


async def test_a_model_whose_name_ends_like_an_action_is_loaded_by_its_whole_name(
    http: httpx2.AsyncClient, database: Database
) -> None:
    await http.post("/v1/models/lab/small/load/unload")
    assert requested(database) == {"lab/small/load": (False, True)}


async def test_a_failed_model_that_an_admin_asks_for_is_shown_as_loading_until_the_launcher_has_tried(
    http: httpx2.AsyncClient, database: Database
) -> None:
    report_engine(database, "lab/small", EngineState.FAILED, reason="no room")
    assert (await http.get("/v1/models/lab/small")).json()["status"] == "failed"
    loading = (await http.post("/v1/models/lab/small/load")).json()
    assert (loading["status"], loading["reason"]) == (
        "loading",
        "an admin has asked to load it, and it waits for its turn",
    )


async def test_a_pinned_model_is_not_unloaded_and_may_be_reloaded(http: httpx2.AsyncClient, database: Database) -> None:
    refused = await http.post("/v1/models/fixed/unload")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "model_pinned"
    assert requested(database) == {}
    assert (await http.post("/v1/models/fixed/reload")).status_code == 202


@pytest.mark.parametrize("action", ["load", "reload", "pin"])
async def test_a_model_that_never_fits_is_refused_with_its_need_in_words(
    http: httpx2.AsyncClient, database: Database, action: str
) -> None:
    reason = too_large(8 << 30, "cpu", 4 << 30)
    report_engine(database, "lab/small", EngineState.FAILED, reason=reason)
    refused = await http.post(f"/v1/models/lab/small/{action}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_too_large")
    assert "it needs 8.0 GiB of memory, and cpu has 4.0 GiB for models" in refused.json()["error"]["message"]
    assert requested(database) == {}
    assert (await http.post("/v1/models/lab/small/unload")).status_code == 202


@pytest.mark.parametrize(
    ("path", "status"),
    [("nothing/load", 404), ("lab/nothing/unload", 404), ("fixed/eject", 400), ("fixed", 405)],
)
async def test_an_unknown_model_or_action_is_refused(
    http: httpx2.AsyncClient, database: Database, path: str, status: int
) -> None:
    assert (await http.post(f"/v1/models/{path}")).status_code == status
    assert requested(database) == {}


async def test_a_pin_holds_until_it_is_taken_back_and_forbids_to_unload(
    http: httpx2.AsyncClient, database: Database
) -> None:
    assert (await http.get("/v1/models/lab/small")).json()["pinned"] is False
    assert (await http.get("/v1/models/fixed")).json()["pinned"] is True, "its file pins it"
    for _ in range(2):
        assert (await http.post("/v1/models/little/pin")).json()["pinned"] is True
    refused = await http.post("/v1/models/lab/small/unload")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_pinned")
    assert "Unpin it first" in refused.json()["error"]["message"]
    assert (await http.post("/v1/models/lab/small/unpin")).json()["pinned"] is False
    assert (await http.post("/v1/models/lab/small/unload")).status_code == 202


async def test_the_pin_of_a_file_is_taken_back_in_the_file_only(http: httpx2.AsyncClient, database: Database) -> None:
    refused = await http.post("/v1/models/fixed/unpin")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_pinned")
    assert "pinned by its file" in refused.json()["error"]["message"]
    assert requested(database) == {}
    assert (await http.post("/v1/models/fixed/pin")).json()["pinned"] is True
