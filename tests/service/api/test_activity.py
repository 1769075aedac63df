"""`GET /v1/activity`: devices and models now, for keys with few rights too, at one read per second."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import event, text

from api.services.activity import ActivityReader
from api.services.model_states import ModelStates
from core import ids
from core.api_keys import KEY, Scope, new_key
from core.models.live_catalog import LiveCatalog
from core.settings import Settings
from core.states import EngineState, ModelAction
from db import keys, model_requests, quarantine, workers
from db.connections import async_database_engine
from db.quarantine import QuarantineEntry
from db.tables import DEFAULT_TENANT
from db.workers import DeviceReport, EngineActivity, EngineReport, WorkerReport
from tests.support.check import check_problem
from tests.support.inside import inside
from tests.support.rows import make_job, make_running_batch
from tests.support.worker_rows import report_engine
from workers.context import Database

GPU = DeviceReport(device="cuda:0", card="H100", total_bytes=800, free_bytes=500, budget_bytes=700)
BUSY = EngineActivity(
    num_running=3,
    num_waiting=2,
    num_embeddings=1,
    prompt_tokens=400,
    cached_tokens=300,
    output_tokens=50,
    prompt_tokens_per_second=12.5,
    output_tokens_per_second=80.0,
    kv_tokens=100,
    kv_reusable_tokens=50,
    kv_total_tokens=1000,
)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    models = tmp_path / "models"
    models.mkdir()
    (models / "a.yaml").write_text("name: lab/a\nbackend: fake\nslots: 4\naliases: [little]\n")
    (models / "b.yaml").write_text("name: b\nbackend: fake\nload: lazy\n")
    (models / "far.yaml").write_text("name: far\nbackend: openai\nbase_url: http://127.0.0.1:9/v1\n")
    return settings.model_copy(update={"models_dir": models})


@pytest.fixture
async def http(settings: Settings, database: Database, valkey: object) -> AsyncIterator[httpx2.AsyncClient]:
    report_engine(database, "lab/a", EngineState.READY)
    report_engine(database, "b", EngineState.UNLOADED)
    async with inside(settings) as http:
        yield http


def report(database: Database, launcher: str, *engines: EngineReport, device: DeviceReport | None = GPU) -> None:
    entered = WorkerReport(id=launcher, kind="launcher", host="box", pid=1, engines=engines, device=device)
    with database.begin() as connection:
        connection.execute(*workers.report_worker(entered))


def loaded(model: str, activity: EngineActivity | None = BUSY, **fields: Any) -> EngineReport:
    place: dict[str, Any] = {"device": "cuda:0", "memory_bytes": 200, "slots": 4, "context_size": 64}
    return EngineReport(model=model, state=EngineState.READY, activity=activity, **(place | fields))


async def models_of(http: httpx2.AsyncClient) -> dict[str, dict[str, Any]]:
    answer = await http.get("/v1/activity")
    assert answer.status_code == 200, answer.text
    return {each["model"]: each for each in answer.json()["models"]}


async def test_a_model_shows_what_its_engines_do_on_all_devices_together(
    http: httpx2.AsyncClient, database: Database
) -> None:
    report(database, "launcher-lab/a", loaded("lab/a"), EngineReport(model="b", state=EngineState.UNLOADED))
    report(database, "other", loaded("lab/a", memory_bytes=100), device=None)
    found = await models_of(http)
    assert list(found) == ["b", "far", "lab/a"], "by name; aliases are no models of their own"
    model = found["lab/a"]
    assert (model["status"], model["slots"], model["busy_slots"], model["memory_bytes"]) == ("ready", 8, 6, 300)
    assert (model["running_requests"], model["waiting_requests"]) == (8, 4)
    assert model["tokens_per_second"] == {"prompt": 25.0, "output": 160.0}
    assert model["tokens"] == {"prompt": 800, "cached": 600, "output": 100}
    assert model["kv_cache"] == {"used_tokens": 200, "reusable_tokens": 100, "total_tokens": 2000, "usage": 0.1}
    assert model["prefix_cache_hit_rate"] == 0.75
    idle = found["b"]
    assert (idle["status"], idle["slots"], idle["busy_slots"], idle["running_requests"]) == ("unloaded", None, None, 0)
    assert (idle["kv_cache"], idle["prefix_cache_hit_rate"], idle["last_crash"]) == (None, None, None)


async def test_a_server_upstream_has_requests_instead_of_slots(http: httpx2.AsyncClient, database: Database) -> None:
    far = EngineActivity(num_running=5, prompt_tokens=9, output_tokens=4)
    report(database, "launcher-far", loaded("far", far, slots=64, memory_bytes=0))
    found = (await models_of(http))["far"]
    assert (found["slots"], found["busy_slots"], found["running_requests"]) == (None, None, 5)
    assert (found["kv_cache"], found["prefix_cache_hit_rate"]) == (None, 0.0)


async def test_a_device_has_its_memory_and_what_is_on_it_until_it_is_silent(
    http: httpx2.AsyncClient, database: Database, settings: Settings
) -> None:
    report(database, "launcher-lab/a", loaded("lab/a"), loaded("unlisted", memory_bytes=30))
    ((device,), _) = (answer := (await http.get("/v1/activity")).json())["devices"], answer["models"]
    assert abs(device.pop("seen_at") - answer["read_at"]) <= 1
    assert device == {
        "host": "box",
        "device": "cuda:0",
        "card": "H100",
        "total_bytes": 800,
        "free_bytes": 500,
        "budget_bytes": 700,
        "engine_bytes": 230,
        "engines": [{"model": "lab/a", "state": "ready", "memory_bytes": 200}],
        "is_silent": False,
    }
    with database.begin() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now() - interval '2 min' WHERE kind = 'launcher'"))
    async with inside(settings) as later:
        answer = (await later.get("/v1/activity")).json()
    assert [(each["is_silent"], each["engines"]) for each in answer["devices"]] == [(True, [])]
    assert {each["running_requests"] for each in answer["models"]} == {0}, "the past is not shown as the present"


async def test_a_model_shows_what_waits_for_it_its_last_crash_and_its_quarantine(
    http: httpx2.AsyncClient, database: Database
) -> None:
    with database.begin() as connection:
        make_job(connection, "b")
        make_running_batch(connection, (2, 3), model="b")
        connection.execute(text("UPDATE batches SET in_progress_at = now() - interval '50 s'"))
        connection.execute(quarantine.add_engine_crash("b", "box/cuda:0", -11, "it was ended by SIGSEGV"))
        for name, crashes in (("f", 1), ("g", 3), ("h", 3)):
            entry = QuarantineEntry(fingerprint=name, tenant_id=DEFAULT_TENANT, model="b", endpoint="/v1/x", job_id="j")
            connection.execute(quarantine.record_crash(entry, crashes=crashes, most=2, kept=quarantine.CRASH_WINDOW))
        connection.execute(model_requests.add_request("b", ModelAction.PIN))
    found = await models_of(http)
    model = found["b"]
    assert model["queue"]["chats"]["waiting"] == 1
    assert model["queue"]["chats"]["oldest_seconds"] < 5
    assert model["queue"]["lines"]["waiting"] == 5
    assert model["queue"]["lines"]["oldest_seconds"] == pytest.approx(50, abs=5)
    assert (model["running_batches"], model["waiting_batches"]) == (0, 1)
    assert model["quarantined_requests"] == {"suspect": 1, "refused": 2}
    crash = model["last_crash"]
    assert (crash["host"], crash["device"], crash["reason"]) == ("box", "cuda:0", "it was ended by SIGSEGV")
    assert (model["pinned"], model["load_requested"]) == (True, True)
    other = found["lab/a"]
    nothing = {"waiting": 0, "oldest_seconds": None}
    assert (other["queue"], other["pinned"]) == ({"chats": nothing, "lines": nothing}, False)


@pytest.fixture
def key(database: Database) -> Iterator[Callable[..., str]]:
    def make(*scopes: Scope, **columns: Any) -> str:
        made = new_key()
        with database.begin() as connection:
            given = {"id": ids.new_id(KEY), "tenant_id": DEFAULT_TENANT, "name": "test", "scopes": scopes, **columns}
            connection.execute(keys.insert_key(prefix=made.prefix, digest=made.digest, **given))
        return made.text

    yield make
    with database.begin() as connection:
        connection.execute(text("TRUNCATE api_keys"))


@pytest.mark.parametrize(
    ("scope", "is_allowed"),
    [(Scope.INFERENCE, True), (Scope.READ_ONLY, True), (Scope.ADMIN, True), (Scope.FILES, False)],
)
async def test_keys_for_inference_and_for_reading_see_it(
    settings: Settings, database: Database, valkey: object, key: Callable[..., str], scope: Scope, is_allowed: bool
) -> None:
    async with inside(settings, key=key(scope)) as http:
        answer = await http.get("/v1/activity")
    if is_allowed:
        assert len(answer.json()["models"]) == 3
    else:
        check_problem(answer, 403, "insufficient_permissions")


async def test_a_key_for_some_models_sees_only_these_and_not_where_others_are(
    settings: Settings, database: Database, valkey: object, key: Callable[..., str]
) -> None:
    report(database, "launcher", loaded("lab/a"), loaded("b"))
    async with inside(settings, key=key(Scope.INFERENCE, models=["b"])) as http:
        answer = await http.get("/v1/activity")
    assert "lab/a" not in answer.text
    assert [each["model"] for each in answer.json()["models"]] == ["b"]
    (device,) = answer.json()["devices"]
    assert [each["model"] for each in device["engines"]] == ["b"]
    assert device["engine_bytes"] == 400, "the memory of others is in use all the same"


async def test_all_tenants_see_the_same_sums_and_no_id_of_another(
    settings: Settings, database: Database, valkey: object, key: Callable[..., str]
) -> None:
    with database.begin() as connection:
        secrets = [make_job(connection, "b"), *make_running_batch(connection, (1,), model="b")[1], DEFAULT_TENANT]
        connection.execute(keys.add_tenant("other"))
    answers = []
    for tenant in (DEFAULT_TENANT, "other"):
        async with inside(settings, key=key(Scope.INFERENCE, tenant_id=tenant)) as http:
            answers.append((await http.get("/v1/activity")).text)
    for answer in answers:
        (model,) = (each for each in json.loads(answer)["models"] if each["model"] == "b")
        assert (model["queue"]["chats"]["waiting"], model["queue"]["lines"]["waiting"]) == (1, 1)
        assert not any(secret in answer for secret in secrets)


async def test_many_pages_read_the_database_once_a_second(
    settings: Settings, database: Database, valkey: object
) -> None:
    assert settings.database_url
    engine, now, statements = async_database_engine(settings.database_url), [100.0], list[str]()
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    states = ModelStates(engine, LiveCatalog(settings.models_dir), settings, clock=lambda: now[0])
    reader = ActivityReader(engine, states, settings.silence_seconds, clock=lambda: now[0])
    await asyncio.gather(*(reader.read() for _ in range(20)))
    once = len(statements)
    assert 0 < once < 12
    now[0] += 0.9
    await reader.read()
    assert len(statements) == once
    now[0] += 0.2
    await reader.read()
    assert len(statements) == 2 * once
    await engine.dispose()
