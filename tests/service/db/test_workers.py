"""Rows of worker processes: inserted, renewed, read with their ages, deleted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from core.readiness import WorkerSeen
from core.states import EngineState
from db import backlog, workers
from db.workers import DeviceReport, EngineActivity, EngineReport, WorkerReport
from tests.support.rows import make_batch, make_job, make_running_batch


def report(**changes: Any) -> WorkerReport:
    fields: dict[str, Any] = {"id": "w", "kind": "chat", "host": "box", "pid": 7}
    return WorkerReport(**(fields | changes))


def enter(connection: Connection, entered: WorkerReport) -> None:
    connection.execute(*workers.report_worker(entered))


def seen(connection: Connection) -> list[WorkerSeen]:
    return workers.list_workers().fetch_all(connection)


def test_ages_are_in_seconds_and_engines_have_a_row_each(connection: Connection) -> None:
    engines = [
        EngineReport(model="a", tick_seconds=3),
        EngineReport(model="b", num_deaths=2, exit_reason="no file", state=EngineState.MISSING, warning="w"),
    ]
    enter(connection, report(poll_seconds=12.5, engines=engines))
    first, second = seen(connection)
    assert (first.model, first.tick_seconds, first.num_deaths) == ("a", pytest.approx(3, abs=0.1), 0)
    assert (second.model, second.tick_seconds, second.exit_reason) == ("b", None, "no file")
    assert (first.state, second.state, second.warning) == (None, EngineState.MISSING, "w")
    assert first.poll_seconds == pytest.approx(12.5, abs=0.1)
    assert first.seen_seconds == pytest.approx(0, abs=0.1)


def test_a_device_has_its_memory_and_the_models_on_it(connection: Connection) -> None:
    card = DeviceReport(device="cuda:1", card="H100", total_bytes=80, free_bytes=70, budget_bytes=60)
    engines = [
        EngineReport(model="b", state=EngineState.READY, memory_bytes=20),
        EngineReport(model="a", state=EngineState.LOADING, memory_bytes=5),
        EngineReport(model="c", state=EngineState.UNLOADED),
    ]
    enter(connection, report(kind="launcher", device=card, engines=engines))
    enter(connection, report(id="other", kind="launcher", device=DeviceReport(device="cpu")))
    enter(connection, report(id="chat"))
    cpu, gpu = workers.list_devices().fetch_all(connection)
    assert (cpu.device, cpu.total_bytes, cpu.engine_bytes, cpu.models) == ("cpu", None, 0, [])
    assert gpu._replace(seen_seconds=0) == ("box", "cuda:1", "H100", 80, 70, 60, 25, ["a", "b"], 0)
    enter(connection, report(kind="launcher", device=replace(card, free_bytes=None)))
    assert workers.list_devices().fetch_all(connection)[1].free_bytes is None


def test_a_clerk_has_no_engine_and_no_poll_before_its_first(connection: Connection) -> None:
    enter(connection, report(kind="clerk"))
    (clerk,) = seen(connection)
    assert (clerk.kind, clerk.model, clerk.poll_seconds) == ("clerk", None, None)


def test_a_report_renews_its_row_and_another_process_of_that_name_has_just_started(connection: Connection) -> None:
    enter(connection, report())
    connection.execute(text("UPDATE workers SET started_at = now() - interval '1 h', seen_at = now() - interval '1 h'"))
    enter(connection, report())
    (same,) = seen(connection)
    assert (same.started_seconds, same.seen_seconds) == (pytest.approx(3600, abs=1), pytest.approx(0, abs=1))
    enter(connection, report(pid=8))
    assert seen(connection)[0].started_seconds == pytest.approx(0, abs=1)


def test_silent_workers_are_deleted_after_an_hour_with_their_engines(connection: Connection) -> None:
    enter(connection, report(engines=[EngineReport(model="a")]))
    enter(connection, report(id="alive"))
    connection.execute(text("UPDATE workers SET seen_at = now() - interval '61 min' WHERE id = 'w'"))
    connection.execute(workers.delete_silent_workers())
    assert [worker.id for worker in seen(connection)] == ["alive"]
    assert connection.execute(text("SELECT count(*) FROM worker_engines")).scalar_one() == 0


def test_counts_of_many_processes_add_up(connection: Connection) -> None:
    for _ in range(3):
        connection.execute(workers.add_counts({("b", ""): 1, ("a", "m"): 2}))
    assert sorted(workers.read_counts().fetch_all(connection)) == [("a", "m", 6), ("b", "", 3)]


def test_what_waits_is_counted_by_class_with_the_age_of_the_first(connection: Connection) -> None:
    nothing = backlog.backlog().fetch_one(connection)
    assert set(nothing) == {0}
    make_job(connection)
    connection.execute(text("UPDATE jobs SET created_at = now() - interval '90 s'"))
    make_batch(connection)
    make_running_batch(connection, (2, 3))
    connection.execute(text("UPDATE batches SET created_at = now() - interval '70 s' WHERE status = 'validating'"))
    connection.execute(text("UPDATE batches SET in_progress_at = now() - interval '50 s' WHERE status = 'in_progress'"))
    row = backlog.backlog().fetch_one(connection)
    assert (row.chats, row.lines, row.clerk_batches) == (1, 5, 1)
    ages = (row.chat_seconds, row.line_seconds, row.clerk_seconds)
    assert ages == tuple(pytest.approx(age, abs=1) for age in (90, 50, 70))
    connection.execute(text("UPDATE shards SET state = 'running', owner = 'w', lease_until = now() WHERE position = 0"))
    row = backlog.backlog().fetch_one(connection)
    assert (row.lines, row.line_seconds, row.shard_leases, row.job_leases) == (5, 0, 1, 0), "it runs: it does not wait"


ACTIVITY = EngineActivity(
    num_running=3,
    num_waiting=1,
    prompt_tokens=40,
    cached_tokens=30,
    output_tokens=9,
    output_tokens_per_second=4.5,
    kv_tokens=20,
    kv_total_tokens=100,
)


def test_an_activity_is_reported_with_its_engine_and_renewed_between_reports(connection: Connection) -> None:
    enter(connection, report(kind="launcher", engines=[EngineReport(model="a", activity=ACTIVITY)]))
    (first,) = seen(connection)
    assert (first.num_running, first.cached_tokens, first.output_tokens_per_second) == (3, 30, 4.5)
    connection.execute(workers.report_activity("w", "a", replace(ACTIVITY, num_running=4)))
    assert seen(connection)[0].num_running == 4
    connection.execute(workers.report_activity("gone", "a", ACTIVITY))
    connection.execute(workers.report_activity("w", "a", None))
    assert seen(connection)[0].kv_total_tokens is None
    enter(connection, report(kind="launcher", engines=[EngineReport(model="a", activity=ACTIVITY)]))
    enter(connection, report(kind="launcher", engines=[EngineReport(model="a")]))
    assert seen(connection)[0].prompt_tokens is None, "an engine that left has none"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"num_waiting": -1}, "requests"),
        ({"cached_tokens": 41}, "tokens"),
        ({"prompt_tokens_per_second": -0.1}, "tokens_per_second"),
        ({"kv_reusable_tokens": 81}, "kv_tokens"),
    ],
)
def test_an_activity_that_cannot_be_is_refused_by_the_table(
    connection: Connection, changes: dict[str, Any], name: str
) -> None:
    enter(connection, report(kind="launcher", engines=[EngineReport(model="a")]))
    with pytest.raises(IntegrityError, match=f"ck_worker_engines_{name}"):
        connection.execute(workers.report_activity("w", "a", replace(ACTIVITY, **changes)))


def test_what_waits_is_counted_by_model(connection: Connection) -> None:
    assert backlog.chats_by_model().fetch_all(connection) == []
    assert backlog.lines_by_model().fetch_all(connection) == []
    for model in ("a", "a", "b"):
        make_job(connection, model)
    connection.execute(text("UPDATE jobs SET created_at = now() - interval '90 s' WHERE model = 'a'"))
    running, _ = make_running_batch(connection, (2, 3), model="a")
    make_running_batch(connection, (4,), model="a")
    paused, _ = make_running_batch(connection, (1,), model="b")
    connection.execute(text("UPDATE batches SET in_progress_at = now() - interval '50 s'"))
    connection.execute(text("UPDATE batches SET paused_at = now() WHERE id = :id"), {"id": paused})
    take = "UPDATE shards SET state = 'running', owner = 'w', lease_until = now(), lines_completed = 1"
    connection.execute(text(f"{take} WHERE batch_id = :id AND position = 0"), {"id": running})
    chats = {each.model: (each.waiting, each.seconds) for each in backlog.chats_by_model().fetch_all(connection)}
    assert chats == {"a": (2, pytest.approx(90, abs=1)), "b": (1, pytest.approx(0, abs=1))}
    lines = backlog.lines_by_model().fetch_all(connection)
    assert lines == [("a", 8, 1, 1, pytest.approx(50, abs=1))], "a batch that is paused does not wait"
