"""Lines that crash an engine or their worker: crash counts outlive the worker, and the body is blocked in the end."""

from __future__ import annotations

import json
import threading
from typing import Any

from sqlalchemy import func, select, update

from core.states import JobState, ShardState
from db.tables import Job, Quarantine, Shard
from engine.process.client import EngineLost
from engine.types import Failed, Finished, Request
from tests.support.rows import make_running_batch
from tests.support.scripted_engine import ScriptedEngine, echo
from tests.support.stack import wait_for
from workers.context import WorkerContext
from workers.generation.quarantine import request_fingerprint
from workers.runtime.leases import Lease
from workers.shards.isolation import Isolation
from workers.shards.lanes import ShardLanes


class WorkerKilled(BaseException):
    """Stands for a kill -9: the worker cleans up nothing."""


def make(worker: WorkerContext, sizes: list[int]) -> str:
    """Make a batch of different lines."""
    with worker.database.begin() as connection:
        batch_id = make_running_batch(connection, sizes)[0]
        body = func.replace(Job.body, "hello", func.concat("question ", Job.line, " of this batch"))
        connection.execute(update(Job).where(Job.batch_id == batch_id).values(body=body))
    return batch_id


def work(worker: WorkerContext) -> None:
    ShardLanes(worker, worker.models["fake"]).work()


def rows(worker: WorkerContext) -> list[Any]:
    with worker.database.begin() as connection:
        return list(connection.execute(select(Job.__table__).order_by(Job.line)).all())


def change(worker: WorkerContext, line: int, **values: Any) -> None:
    with worker.database.begin() as connection:
        connection.execute(update(Job).where(Job.line == line).values(**values))


def change_shards(worker: WorkerContext, **values: Any) -> None:
    with worker.database.begin() as connection:
        connection.execute(update(Shard).values(**values))


def quarantined(worker: WorkerContext) -> list[Any]:
    with worker.database.begin() as connection:
        return list(connection.execute(select(Quarantine.__table__)).all())


def text_of(request: Request) -> str:
    return str(request.prompt.messages[0]["content"])  # type: ignore[union-attr]


def poison(*lines: int) -> frozenset[str]:
    return frozenset(f"question {line} of this batch" for line in lines)


class Crashing:
    """Answers all lines but the poison, which crashes the engine. Lines in a slot were running, the others only waited."""

    def __init__(self, engine: ScriptedEngine, texts: frozenset[str], slots: int = 4) -> None:
        self.engine = engine
        self.texts = texts
        self.slots = slots
        self.num_crashes = 0
        self.asked_exclusive: list[str] = []

    def __call__(self, request: Request) -> Finished | None:
        if request.exclusive:
            self.asked_exclusive.append(text_of(request))
        if text_of(request) not in self.texts:
            return echo(request) if len(self.engine.asked) > self.slots else None
        self.num_crashes += 1
        self.engine.asked = self.engine.asked[-1:] * (self.slots + 1)
        running = list(self.engine.running)
        for place, key in enumerate(reversed(running)):
            lost = EngineLost(request_id=key, was_running=place < self.slots, was_alone=len(running) == 1)
            self.engine.end(key, lost)
        return None


def test_only_running_lines_are_suspects_and_each_suspect_runs_alone(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    make(worker, [30])
    crashing = engine.answer = Crashing(engine, poison(6), slots=3)
    work(worker)
    assert [row.line for row in rows(worker) if row.state == JobState.FAILED] == [6]
    assert crashing.num_crashes == worker.settings.line_attempts
    assert set(crashing.asked_exclusive) <= {f"question {line} of this batch" for line in range(1, 9)}
    assert len(set(crashing.asked_exclusive)) == 3
    assert [row.crashes for row in rows(worker) if row.line > 8] == [0] * 22


def test_a_crash_count_outlives_the_worker(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [8])
    crashed = threading.Event()

    def answer(request: Request) -> None:
        if len(engine.running) == 8:
            crashed.set()
            for key in list(engine.running):
                engine.end(key, EngineLost(request_id=key, was_running=key == request.id))

    engine.answer = answer
    lanes = ShardLanes(worker, worker.models["fake"])
    thread = threading.Thread(target=lanes.work)
    thread.start()
    wait_for(lambda: sum(row.crashes for row in rows(worker)) == 2, "it is counted, and again before it runs alone")
    with worker.database.begin() as connection:
        connection.execute(update(Shard).values(owner="other", fence=Shard.fence + 1))
    lanes.drain(abort=True)
    thread.join(20)
    assert [row.crashes for row in rows(worker)] == [0] * 7 + [2], "a lane that lost its lease changes nothing"
    change_shards(worker, lease_until=func.now())
    crashing = engine.answer = Crashing(engine, poison(8))
    work(worker)
    assert [row.state for row in rows(worker)] == [JobState.COMPLETED] * 7 + [JobState.FAILED]
    assert crashing.num_crashes == worker.settings.line_attempts - 2


def test_no_crash_is_counted_for_a_suspect_that_was_stopped(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [2])
    change(worker, 1, crashes=2)
    running = threading.Event()
    engine.answer = lambda request: running.set()
    lanes = ShardLanes(worker, worker.models["fake"])
    thread = threading.Thread(target=lanes.work)
    thread.start()
    assert running.wait(20)
    assert [row.crashes for row in rows(worker)] == [3, 0], "counted before it runs"
    lanes.drain(abort=True)
    thread.join(20)
    assert [row.crashes for row in rows(worker)] == [2, 0]
    engine.answer = echo
    work(worker)
    assert {row.state for row in rows(worker)} == {JobState.COMPLETED}


def is_killed_by(worker: WorkerContext, engine: ScriptedEngine, text: str) -> bool:
    """Run a worker that is killed when it runs this line; True if that happened."""
    killed_by: list[str] = []

    def answer(request: Request) -> Finished | None:
        if text_of(request) != text:
            return echo(request)
        killed_by.append(request.id)
        raise WorkerKilled

    engine.answer = answer
    try:
        work(worker)
    except WorkerKilled:
        engine.running.clear()
    change_shards(worker, lease_until=func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1)) if killed_by else None
    return bool(killed_by)


def test_a_line_that_ends_its_worker_is_found_by_the_next_workers(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    """Three leases are lost before all lines are suspects, then `line_attempts` more while the line runs alone."""
    make(worker, [6])
    num_kills = 0
    while is_killed_by(worker, engine, "question 4 of this batch"):
        num_kills += 1
        assert num_kills < 20
    assert num_kills == 3 + worker.settings.line_attempts
    done = rows(worker)
    assert [row.line for row in done if row.state == JobState.FAILED] == [4]
    assert [row.state for row in done].count(JobState.COMPLETED) == 5
    assert "engine_crash" in done[3].problem


def test_a_shard_that_lost_its_workers_runs_line_by_line_with_nothing_beside_it(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    make(worker, [5])
    change_shards(worker, attempt=3)
    make(worker, [20])
    beside: list[int] = []

    def answer(request: Request) -> Finished:
        if request.exclusive:
            beside.append(len(engine.running))
        return echo(request)

    engine.answer = answer
    lanes = ShardLanes(worker, worker.models["fake"])
    threads = [threading.Thread(target=lanes.work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert beside == [1] * 5
    assert {row.state for row in rows(worker)} == {JobState.COMPLETED}


def test_a_lease_that_is_lost_before_a_suspect_begins_keeps_no_other_shard_out(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    make(worker, [3])
    change_shards(worker, attempt=3)
    hold = worker.leases.hold

    def lose(*arguments: Any) -> Lease:
        change_shards(worker, fence=Shard.fence + 1, owner="other")
        return hold(*arguments)

    worker.leases.hold = lose  # type: ignore[assignment,method-assign]
    isolation = Isolation()
    ShardLanes(worker, worker.models["fake"], isolation).work()
    assert engine.asked == []
    assert isolation.enter("another shard", exclusive=False)


def test_a_blocked_request_is_rejected_in_other_batches_and_its_neighbours_are_not(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    make(worker, [4])
    engine.answer = Crashing(engine, poison(2))
    work(worker)
    (blocked,) = quarantined(worker)
    row = rows(worker)[1]
    assert blocked.fingerprint == request_fingerprint("default", "fake", row.endpoint, json.loads(row.body))
    assert blocked.blocked_at is not None
    make(worker, [4])
    engine.answer = crashing = Crashing(engine, poison(2))
    work(worker)
    assert crashing.num_crashes == 0
    rejected = [row for row in rows(worker) if row.state == JobState.FAILED]
    assert [row.line for row in rejected] == [2, 2]
    assert '"status":400' in rejected[0].problem or '"status":400' in rejected[1].problem
    with worker.database.begin() as connection:
        assert set(connection.execute(select(Shard.state)).scalars()) == {ShardState.DONE}


def test_a_step_that_failed_without_ending_the_engine_makes_suspects_too(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    """All requests of such a step fail; one of them is the cause."""
    make(worker, [6])

    def answer(request: Request) -> Finished | Failed | None:
        if text_of(request) in poison(3):
            for key in list(engine.running):
                engine.end(key, Failed(request_id=key, code="engine_error", message="the step failed"))
            return None
        return echo(request) if request.exclusive or len(engine.asked) > 3 else None

    engine.answer = answer
    work(worker)
    assert [row.line for row in rows(worker) if row.state == JobState.FAILED] == [3]
    assert quarantined(worker) == [], "the engine did not end"
