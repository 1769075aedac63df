"""Demand: what waits for models, which launchers have them, and loads that are reserved."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import event, update

from core.states import EngineState, ModelAction
from db import demand, model_loads, model_requests
from db.tables import Batch
from tests.support.rows import make_job, make_running_batch
from tests.support.worker_rows import report_engine
from workers.context import Database
from workers.residency.demand import DemandReader

SILENCE = timedelta(seconds=60)


def reader(database: Database, name: str) -> DemandReader:
    return DemandReader(database, name, 60, lambda: None, clock=lambda: 1000.0)


def test_the_models_that_jobs_and_shards_wait_for(database: Database) -> None:
    with database.begin() as connection:
        make_job(connection, "chatty", "{}")
        batch_id, _ = make_running_batch(connection, [2])
        connection.execute(update(Batch).where(Batch.id == batch_id).values(priority=3))
    with database.begin() as connection:
        (chat,) = demand.waiting_chats().fetch_all(connection)
        assert demand.waiting_shards().fetch_all(connection) == [("fake", 3, 1)]
    assert chat.model == "chatty"
    assert 0 <= chat.seconds < 60
    with database.begin() as connection:
        connection.execute(update(Batch).values(paused_at=Batch.created_at))
        assert demand.waiting_shards().fetch_all(connection) == []


def test_a_look_has_jobs_batches_admins_and_other_launchers(database: Database) -> None:
    report_engine(database, "elsewhere", EngineState.READY)
    with database.begin() as connection:
        make_job(connection, "chatty", "{}")
        make_running_batch(connection, [1])
        connection.execute(model_requests.add_request("asked", ModelAction.RELOAD))
    mine = reader(database, "me")
    mine.wish("hurried")
    mine._look()
    waiting = mine.waiting
    assert set(waiting.chats) == {"chatty", "hurried"}
    assert waiting.chats["chatty"] <= 1000
    assert set(waiting.batches) == {"fake"}
    assert waiting.shards == {"fake": 1}
    asked = waiting.admins["asked"]
    assert asked.load_at is not None
    assert asked.load_since is not None
    assert asked.unload_since is not None
    assert waiting.is_elsewhere("elsewhere")
    assert not waiting.is_elsewhere("chatty")


def test_a_look_is_one_statement(database: Database) -> None:
    mine, statements = reader(database, "me"), list[str]()
    event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    event.listen(database.engine, "commit", lambda _: statements.append("COMMIT"))
    mine._look()
    assert len(statements) == 1


def test_a_request_to_load_is_ended_by_the_time_that_a_look_has(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(model_requests.add_request("m", ModelAction.LOAD))
    mine = reader(database, "me")
    mine._look()
    load_at = mine.waiting.admins["m"].load_at
    assert load_at is not None
    with database.begin() as connection:
        connection.execute(model_requests.finish_load("m", load_at))
    mine._look()
    assert mine.waiting.admins == {}


def test_one_launcher_reserves_a_load(database: Database) -> None:
    report_engine(database, "m", EngineState.UNLOADED)  # `launcher-m`
    report_engine(database, "other", EngineState.UNLOADED)  # `launcher-other`
    first, second = reader(database, "launcher-m"), reader(database, "launcher-other")
    for each in (first, second):
        each._reserve("m", 5, 1)
    assert (first.reservations, second.reservations) == ({"m": True}, {"m": False})
    second._reserve("m", 5, 2)
    assert second.reservations == {"m": True}, "two replicas are allowed"


def test_the_time_of_loads_is_a_mean_of_the_last_ones(database: Database) -> None:
    with database.begin() as connection:
        for seconds in (1.0, 3.0):
            connection.execute(model_loads.record_load("m", "box", "cpu", seconds))
        connection.execute(model_loads.record_load("m", "box", "cuda:0", 0.5))
        assert model_loads.load_times_of_device("box", "cpu").fetch_all(connection) == [("m", 2.0)]
        assert model_loads.load_times(["m", "none"]).fetch_all(connection) == [("m", 0.5)]


def test_a_model_is_out_of_memory_when_no_launcher_has_it(database: Database) -> None:
    for model, state in (("in", EngineState.READY), ("out", EngineState.UNLOADED), ("broken", EngineState.FAILED)):
        report_engine(database, model, state)
    with database.begin() as connection:
        assert set(connection.execute(demand.models_out_of_memory(SILENCE)).scalars()) == {"out", "broken"}
        assert set(connection.execute(demand.models_out_of_memory(timedelta(seconds=-1))).scalars()) == set()
