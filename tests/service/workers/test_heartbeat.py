"""A process reports itself, and each of its counts once."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import redis
from celery import Celery
from sqlalchemy import event, text

from core.counters import CounterName
from db import jobs, shards, workers
from db.workers import EngineReport, WorkerReport
from tests.support.rows import make_job, make_running_batch
from tests.support.stack import wait_for
from workers.consumers.batch import BatchConsumer
from workers.context import Database, WorkerContext
from workers.heartbeat import (
    Identity,
    Status,
    WorkerHeartbeat,
    consumer_identity,
    worker_status,
)

LEASE = timedelta(seconds=60)
ME = Identity(id="me", kind="batch", host="box", pid=1)


def rows(database: Database) -> list[tuple[str, str | None]]:
    with database.begin() as connection:
        return [(row.id, row.model) for row in workers.list_workers().fetch_all(connection)]


def counts(database: Database) -> dict[tuple[str, str], int]:
    with database.begin() as connection:
        return {(name, model): value for name, model, value in workers.read_counts().fetch_all(connection)}


def test_the_row_of_a_process_exists_from_start_to_stop(database: Database) -> None:
    heartbeat = WorkerHeartbeat(
        ME, database, lambda: Status(engines=[EngineReport(model="m", tick_seconds=0)]), seconds=3600
    )
    heartbeat.start()
    assert rows(database) == [("me", "m")]
    heartbeat.close(10)
    assert rows(database) == []


def test_a_report_renews_the_engines_and_removes_others_in_one_statement(database: Database) -> None:
    engines, statements = [EngineReport(model="a"), EngineReport(model="b")], list[str]()
    heartbeat = WorkerHeartbeat(ME, database, lambda: Status(engines=engines), seconds=3600)
    heartbeat.beat()
    assert rows(database) == [("me", "a"), ("me", "b")]
    engines.pop(0)
    event.listen(database.engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    event.listen(database.engine, "commit", lambda _: statements.append("COMMIT"))
    heartbeat.beat()
    assert len(statements) == 1
    assert rows(database) == [("me", "b")]
    engines.clear()
    heartbeat.beat()
    assert rows(database) == [("me", None)]


def test_a_process_that_is_closed_before_its_start_has_no_row(database: Database) -> None:
    heartbeat = WorkerHeartbeat(ME, database, Status, seconds=3600)
    heartbeat.close()
    heartbeat.start()
    assert rows(database) == []


def test_the_row_of_a_failed_process_is_kept(database: Database) -> None:
    heartbeat = WorkerHeartbeat(
        ME, database, lambda: Status(engines=[EngineReport(model="m", exit_reason="no")]), seconds=3600
    )
    heartbeat.start()
    heartbeat.close(10, is_row_kept=True)
    assert rows(database) == [("me", "m")]


def test_counts_are_reported_once_even_after_a_failed_report(database: Database) -> None:
    totals = {(str(CounterName.LEASES_LOST), ""): 2}
    heartbeat = WorkerHeartbeat(ME, database, lambda: Status(totals=totals), seconds=3600)
    heartbeat.beat()
    heartbeat.beat()
    totals[CounterName.LEASES_LOST, ""] = 5
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE counters RENAME TO away"))
    with pytest.raises(Exception, match="counters"):
        heartbeat.beat()
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO counters"))
    heartbeat.beat()
    assert counts(database) == {("leases_lost", ""): 5}


def test_a_worker_reports_its_engines_lost_leases_and_crashes(worker: WorkerContext, monkeypatch) -> None:
    engine = worker.models["fake"].engine
    monkeypatch.setattr(engine, "seconds_since_tick", lambda now: now - 90, raising=False)
    worker.leases.hold("s", "fake", 1)
    worker.leases.beat()
    worker.leases.beat()
    worker.counters.add(CounterName.LINES_RETRIED, "fake", 3)
    status = worker_status(worker, poll_seconds=4, now=100)
    assert status.engines == [EngineReport(model="fake", tick_seconds=10)]
    assert (status.poll_seconds, status.totals["leases_lost", ""]) == (4, 1)
    assert status.totals["lines_retried", "fake"] == 3


def test_a_successor_ends_the_leases_of_its_dead_predecessor_only(database: Database) -> None:
    dead, heir, other = (consumer_identity("batch", slot) for slot in ("mine", "mine", "other"))
    with database.begin() as connection:
        _, mine = make_running_batch(connection, [1, 1])
        job_id, foreign = make_job(connection), make_job(connection)
        jobs.claim_job(job_id, dead.id, LEASE).fetch_optional(connection)
        jobs.claim_job(foreign, other.id, LEASE).fetch_optional(connection)
        shards.claim_next_shard("fake", dead.id, LEASE).fetch_optional(connection)
        shards.claim_next_shard("fake", other.id, LEASE).fetch_optional(connection)
        for who in (dead, other):
            connection.execute(*workers.report_worker(WorkerReport(id=who.id, kind="batch", host="box", pid=1)))
    WorkerHeartbeat(heir, database, Status, seconds=3600).claim_slot()
    with database.begin() as connection:
        over = [
            *connection.execute(text("SELECT owner FROM jobs WHERE lease_until < now()")).scalars(),
            *connection.execute(text("SELECT owner FROM shards WHERE lease_until < now()")).scalars(),
        ]
        again = shards.claim_next_shard("fake", heir.id, LEASE).fetch_one(connection)
    assert over == [dead.id] * 2
    assert (again.id, again.attempt) == (mine[0], 2)
    assert [row[0] for row in rows(database)] == [other.id]


def test_a_consumer_without_tickets_finds_its_work_and_reports_its_polls(
    worker: WorkerContext, celery_app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.models["fake"].engine, "seconds_since_tick", lambda _: 0.0, raising=False)
    nowhere = redis.Redis(unix_socket_path="/nowhere")
    consumer = BatchConsumer(celery_app, worker, nowhere)
    consumer.add_model(worker.models["fake"])
    assert consumer.status(time.monotonic()).poll_seconds is None
    with worker.database.begin() as connection:
        batch_id, _ = make_running_batch(connection, (3,))
    consumer.start()  # without a Celery worker, no ticket and no hint arrives

    def status() -> str:
        with worker.database.begin() as connection:
            return connection.execute(text("SELECT status FROM batches WHERE id = :id"), {"id": batch_id}).scalar_one()

    wait_for(lambda: status() == "finalizing", "its lines are answered", 20)
    wait_for(lambda: consumer.status(time.monotonic()).poll_seconds is not None, "it has looked", 5)
    assert worker_status(worker, 0, 0).totals["events_dropped", ""] == 0
    consumer.drain(abort=False)
    wait_for(consumer.is_idle, "it has left its shard", 20)
    worker.leases.close()
    consumer._watches.close()
