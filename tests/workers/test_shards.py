"""A shard's run: lines to the engine, results under the fence, and what happens when something dies."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import func, select, update

from core.states import BatchState, JobState, ShardState
from db import batches
from db.tables import Batch, Job, Shard, UsageDaily
from engine.client import EngineLost
from engine.messages import Failed, Finished, Request
from tests.db.make import make_running_batch
from tests.workers.conftest import ScriptedEngine, echo
from workers.context import WorkerContext
from workers.shards import Lanes, Progress


def make(worker: WorkerContext, sizes: list[int]) -> str:
    with worker.database.begin() as connection:
        return make_running_batch(connection, sizes)[0]


def work(worker: WorkerContext) -> None:
    Lanes(worker, worker.models["fake"]).work()


def rows(worker: WorkerContext) -> list[Any]:
    with worker.database.begin() as connection:
        return list(connection.execute(select(Job).order_by(Job.line)).all())


def only(worker: WorkerContext, table: type[Shard] | type[Batch] | type[UsageDaily]) -> Any:
    with worker.database.begin() as connection:
        return connection.execute(select(table.__table__)).one()


def test_a_lane_runs_all_shards_and_sends_the_batch_to_the_clerk(
    worker: WorkerContext, engine: ScriptedEngine, valkey: Any
) -> None:
    make(worker, [40, 3, 1])
    work(worker)
    done = rows(worker)
    assert {row.state for row in done} == {JobState.COMPLETED}
    assert all('"content":"hello"' in row.answer and row.model_hash == "hash" for row in done)
    assert len(engine.asked) == 44
    batch = only(worker, Batch)
    assert (batch.status, batch.outcome) == (BatchState.FINALIZING, BatchState.COMPLETED)
    assert valkey.llen("millrace:clerk") == 1
    usage = only(worker, UsageDaily)
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (44, 132, 88, 44)


def test_the_engine_never_holds_more_than_two_lines_a_slot(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [60])
    gate = threading.Event()

    def answer(request: Request) -> Finished | None:
        if gate.is_set():
            return echo(request)
        if len(engine.running) == 8:
            gate.set()
            for key, sink in list(engine.running.items()):
                engine._queue.put((sink, echo(next(one for one in engine.asked if one.id == key))))
                engine.running.pop(key)
        return None

    engine.answer = answer
    work(worker)
    assert engine.max_running == 8
    assert {row.state for row in rows(worker)} == {JobState.COMPLETED}


def test_a_line_the_engine_refuses_fails_alone(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [5])

    def answer(request: Request) -> Finished | Failed:
        if len(engine.asked) == 3:
            return Failed(request_id=request.id, code="context_length_exceeded", message="too long", param="messages")
        return echo(request)

    engine.answer = answer
    work(worker)
    assert [row.state for row in rows(worker)].count(JobState.FAILED) == 1
    failed = next(row for row in rows(worker) if row.state == JobState.FAILED)
    assert '"status":400' in failed.problem
    assert only(worker, Shard).lines_failed == 1


def test_a_line_that_kills_the_engine_is_found_and_fails_alone(worker: WorkerContext, engine: ScriptedEngine) -> None:
    """Every crash loses all running lines; the culprit is the only one that is convicted."""
    make(worker, [30])
    culprit: list[str] = []

    def answer(request: Request) -> Finished | None:
        if not culprit and len(engine.asked) == 4:
            culprit.append(request.id)
        if culprit and request.id == culprit[0]:
            for key in list(engine.running):
                engine.end(key, EngineLost(request_id=key))
            return None
        return None if len(engine.running) < 3 and not culprit else echo(request)

    engine.answer = answer
    work(worker)
    done = rows(worker)
    assert [row.id for row in done if row.state == JobState.FAILED] == culprit
    assert [row.state for row in done].count(JobState.COMPLETED) == 29
    assert "engine_crash" in next(row.problem for row in done if row.state == JobState.FAILED)
    assert sum(request.id == culprit[0] for request in engine.asked) == 3


def test_lines_of_a_lost_lease_are_not_written_and_not_counted(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [4])

    def answer(request: Request) -> Finished:
        if len(engine.asked) == 1:
            with worker.database.begin() as connection:
                connection.execute(update(Shard).values(fence=Shard.fence + 1, owner="other"))
        return echo(request)

    engine.answer = answer
    work(worker)
    assert {row.state for row in rows(worker)} == {JobState.QUEUED}
    shard = only(worker, Shard)
    assert (shard.state, shard.owner, shard.lines_completed) == (ShardState.RUNNING, "other", 0)


def test_a_cancelled_batch_stops_within_a_heartbeat_and_keeps_what_was_done(
    worker: WorkerContext, engine: ScriptedEngine, valkey: Any
) -> None:
    batch_id = make(worker, [20])
    running = threading.Event()

    def answer(request: Request) -> Finished | None:
        if len(engine.asked) <= 2:
            return echo(request)
        running.set()
        return None

    engine.answer = answer
    thread = threading.Thread(target=work, args=(worker,))
    thread.start()
    assert running.wait(20)
    with worker.database.begin() as connection:
        connection.execute(batches.move(batch_id, BatchState.CANCELLING)).one()
    worker.leases.beat()
    thread.join(20)
    assert not thread.is_alive()
    assert [row.state for row in rows(worker)].count(JobState.COMPLETED) == 2
    assert only(worker, Shard).state == ShardState.READY
    assert valkey.llen("millrace:clerk") == 1, "the clerk is told that nobody works on it any more"


def test_a_draining_lane_gives_its_shard_back(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [20, 20])
    running = threading.Event()

    def answer(request: Request) -> None:
        running.set()

    engine.answer = answer
    lanes = Lanes(worker, worker.models["fake"])
    thread = threading.Thread(target=lanes.work)
    thread.start()
    assert running.wait(20)
    lanes.drain(abort=False)
    assert not lanes.is_idle()
    lanes.drain(abort=True)
    thread.join(20)
    assert not thread.is_alive()
    assert lanes.is_idle()
    with worker.database.begin() as connection:
        states = connection.execute(select(Shard.state, Shard.attempt)).all()
    assert states == [(ShardState.READY, 0), (ShardState.READY, 0)]
    assert engine.running == {}


def test_no_more_lanes_run_than_are_set(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [1] * 6)
    engine.answer = lambda request: None
    lanes = Lanes(worker, worker.models["fake"])
    threads = [threading.Thread(target=lanes.work) for _ in range(5)]
    for thread in threads:
        thread.start()
    deadline = threading.Event()
    while len(engine.running) < worker.settings.batch_lanes:
        assert not deadline.wait(0.01)
    with worker.database.begin() as connection:
        running = select(func.count()).select_from(Shard).where(Shard.state == ShardState.RUNNING)
        assert connection.execute(running).scalar_one() == worker.settings.batch_lanes
    lanes.drain(abort=True)
    for thread in threads:
        thread.join(20)


def test_a_lease_that_is_not_trusted_begins_nothing_new(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [4])
    worker.leases._clock = lambda: 0.0
    lanes = Lanes(worker, worker.models["fake"])
    thread = threading.Thread(target=lanes.work)
    run_began = threading.Event()
    worker.leases.is_trusted = lambda lease: bool(run_began.set())  # type: ignore[method-assign]
    thread.start()
    assert run_began.wait(20)
    lanes.drain(abort=True)
    thread.join(20)
    assert engine.asked == []


class ProgressMachine(RuleBasedStateMachine):
    """Lines are submitted, answered and crashed in any order; each ends once or is convicted once."""

    def __init__(self) -> None:
        super().__init__()
        lines = [f"l{n}" for n in range(8)]
        self.progress = Progress(deque(lines), dict.fromkeys(lines, ""))
        self.ended: list[str] = []

    @rule()
    def submit(self) -> None:
        line = self.progress.next_line(3)
        if line is not None:
            assert line not in self.ended
            self.progress.running.add(line)
            is_suspect = line in self.progress.crashes
            assert not is_suspect or self.progress.running == {line}, "a suspect runs alone"
            assert len(self.progress.running) <= 3

    @precondition(lambda self: self.progress.running)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        line = data.draw(st.sampled_from(sorted(self.progress.running)))
        self.progress.running.discard(line)
        self.ended.append(line)

    @precondition(lambda self: self.progress.running)
    @rule()
    def crash(self) -> None:
        for line in sorted(self.progress.running):
            if self.progress.crashed(line) < 3:
                self.progress.suspects.append(line)
            else:
                self.ended.append(line)

    @invariant()
    def each_line_is_in_one_place(self) -> None:
        self.progress.check_integrity()
        assert len(set(self.ended)) == len(self.ended)
        if self.progress.is_over():
            assert len(self.ended) == 8


TestProgress = ProgressMachine.TestCase
TestProgress.settings = hypothesis_settings(max_examples=50, deadline=None)
