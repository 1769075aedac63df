"""The run of a shard: lines go to the engine, results are written under the fence, also after crashes and lost leases."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from core.schemas.endpoints import COMPLETIONS_ENDPOINT
from core.states import BatchState, JobState, ShardState
from db import batch_control, batches
from db.tables import Batch, Job, Shard, UsageDaily
from engine.process.client import EngineLost
from engine.types import Choice, Failed, Finished, FinishReason, Request, TextPrompt, Usage
from tests.support.contexts import with_settings
from tests.support.rows import make_running_batch
from tests.support.scripted_engine import ScriptedEngine, echo
from tests.support.sick import SickDatabase
from tests.support.stack import wait_for
from workers.context import WorkerContext
from workers.shards.lanes import ShardLanes
from workers.shards.line_run import LineRun
from workers.shards.shard_progress import Line
from workers.shards.shard_run import ShardRun

GREEDY = ', "temperature": 0'


def make(worker: WorkerContext, sizes: list[int], options: str = "") -> str:
    with worker.database.begin() as connection:
        return make_running_batch(connection, sizes, options=options)[0]


def change_body(worker: WorkerContext, line: int, content: str) -> None:
    with worker.database.begin() as connection:
        connection.execute(update(Job).where(Job.line == line).values(body=func.replace(Job.body, "hello", content)))


def work(worker: WorkerContext) -> None:
    ShardLanes(worker, worker.models["fake"]).work()


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


def test_a_line_the_engine_rejects_fails_alone(worker: WorkerContext, engine: ScriptedEngine) -> None:
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


def test_a_line_that_crashes_the_engine_is_found_and_fails_alone(worker: WorkerContext, engine: ScriptedEngine) -> None:
    """Each crash loses all running lines; only the line that caused it is blocked."""
    make(worker, [30])
    for line in range(1, 31):
        change_body(worker, line, f"hello {line}")
    poison: list[str] = []

    def answer(request: Request) -> Finished | None:
        if not poison and len(engine.asked) == 4:
            poison.append(request.id)
        if poison and request.id == poison[0]:
            for key in list(engine.running):
                engine.end(key, EngineLost(request_id=key))
            return None
        return None if len(engine.running) < 3 and not poison else echo(request)

    engine.answer = answer
    work(worker)
    done = rows(worker)
    assert [row.id for row in done if row.state == JobState.FAILED] == poison
    assert [row.state for row in done].count(JobState.COMPLETED) == 29
    assert "engine_crash" in next(row.problem for row in done if row.state == JobState.FAILED)
    assert sum(request.id == poison[0] for request in engine.asked) == 3


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
        batches.move(batch_id, BatchState.CANCELLING).fetch_one(connection)
    worker.leases.beat()
    thread.join(20)
    assert not thread.is_alive()
    assert [row.state for row in rows(worker)].count(JobState.COMPLETED) == 2
    assert only(worker, Shard).state == ShardState.READY
    assert valkey.llen("millrace:clerk") == 1, "the last worker to leave sends the clerk a ticket"


def test_a_draining_lane_leaves_its_shard_to_others(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [20, 20])
    running = threading.Event()

    def answer(request: Request) -> None:
        running.set()

    engine.answer = answer
    lanes = ShardLanes(worker, worker.models["fake"])
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
    lanes = ShardLanes(worker, worker.models["fake"])
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
    lanes = ShardLanes(worker, worker.models["fake"])
    thread = threading.Thread(target=lanes.work)
    run_began = threading.Event()
    worker.leases.is_trusted = lambda lease: bool(run_began.set())  # type: ignore[method-assign]
    thread.start()
    assert run_began.wait(20)
    lanes.drain(abort=True)
    thread.join(20)
    assert engine.asked == []


def test_lines_of_a_shard_are_one_group_for_the_engine(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [3, 2])
    work(worker)
    groups = [request.group for request in engine.asked]
    assert groups == [row.shard_id for row in rows(worker)]
    assert len(set(groups)) == 2


def test_identical_greedy_lines_run_once_and_answer_all(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [100], GREEDY)
    change_body(worker, 60, "another")
    work(worker)
    done = rows(worker)
    assert [request.id for request in engine.asked] == [done[0].id, done[59].id, done[60].id]
    assert {row.state for row in done} == {JobState.COMPLETED}
    answers = [json.loads(row.answer) for row in done]
    assert [answer["id"] for answer in answers] == [row.id for row in done]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert [text for text in texts if text != "hello"] == ["another"]
    shard = only(worker, Shard)
    assert (shard.state, shard.lines_completed) == (ShardState.DONE, 100)


def test_a_duplicate_counts_its_whole_prompt_as_cached(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [3], GREEDY)
    work(worker)
    ran, *duplicates = rows(worker)
    assert (ran.prompt_tokens, ran.completion_tokens, ran.cached_tokens) == (3, 2, 1)
    for duplicate in duplicates:
        assert (duplicate.prompt_tokens, duplicate.completion_tokens, duplicate.cached_tokens) == (3, 2, 3)
        assert json.loads(duplicate.answer)["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    usage = only(worker, UsageDaily)
    assert (usage.requests, usage.prompt_tokens, usage.cached_tokens) == (3, 9, 7)


def test_identical_lines_run_each_when_they_are_sampled_or_sharing_is_off(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    make(worker, [5], ', "temperature": 0.5')
    work(worker)
    assert len(engine.asked) == 5
    worker = with_settings(worker, share_identical_lines=False)
    make(worker, [5], GREEDY)
    work(worker)
    assert len(engine.asked) == 10


def test_duplicates_of_a_line_the_engine_rejects_fail_with_it(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [4], GREEDY)
    change_body(worker, 1, "another")
    engine.answer = lambda request: (
        echo(request)
        if len(engine.asked) == 1
        else Failed(request_id=request.id, code="context_length_exceeded", message="too long")
    )
    work(worker)
    assert [row.state for row in rows(worker)] == [JobState.COMPLETED, *[JobState.FAILED] * 3]
    assert len(engine.asked) == 2
    assert only(worker, Shard).lines_failed == 3


def test_duplicates_are_blocked_with_the_line_they_follow(worker: WorkerContext, engine: ScriptedEngine) -> None:
    """Running each of them would crash the engine as often again."""
    make(worker, [6], GREEDY)
    change_body(worker, 1, "harmless")
    change_body(worker, 6, "harmless too")

    def answer(request: Request) -> Finished | None:
        if request.prompt.messages[0]["content"] == "hello":  # type: ignore[union-attr]
            for key in list(engine.running):
                engine.end(key, EngineLost(request_id=key))
            return None
        return echo(request)

    engine.answer = answer
    work(worker)
    done = rows(worker)
    assert [row.state for row in done] == [JobState.COMPLETED, *[JobState.FAILED] * 4, JobState.COMPLETED]
    assert all("engine_crash" in row.problem for row in done[1:5])
    assert sum(request.id == done[1].id for request in engine.asked) == worker.settings.line_attempts
    assert not {row.id for row in done[2:5]} & {request.id for request in engine.asked}


def test_duplicates_wait_with_a_line_that_was_stopped(worker: WorkerContext, engine: ScriptedEngine) -> None:
    make(worker, [4], GREEDY)
    running = threading.Event()
    engine.answer = lambda request: running.set()
    lanes = ShardLanes(worker, worker.models["fake"])
    thread = threading.Thread(target=lanes.work)
    thread.start()
    assert running.wait(20)
    lanes.drain(abort=True)
    thread.join(20)
    assert {row.state for row in rows(worker)} == {JobState.QUEUED}
    engine.answer = echo
    work(worker)
    assert {row.state for row in rows(worker)} == {JobState.COMPLETED}
    assert len(engine.asked) == 2


def test_a_structured_answer_that_was_cut_off_is_a_failed_line_and_its_tokens_count(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    make(worker, [2], ', "response_format": {"type": "json_object"}')
    change_body(worker, 2, "whole")

    def answer(request: Request) -> Finished:
        finished = echo(request)
        if finished.text == "whole":
            return finished
        cut = Choice(reason=FinishReason.LENGTH, text='{"a":')
        return Finished(request_id=request.id, choices=[cut], usage=finished.usage)

    engine.answer = answer
    work(worker)
    cut, whole = rows(worker)
    assert (cut.state, whole.state) == (JobState.FAILED, JobState.COMPLETED)
    assert "incomplete_output" in cut.problem
    assert cut.completion_tokens == whole.completion_tokens > 0


def test_a_pause_ends_a_shard_after_the_lines_that_run_and_a_resume_goes_on(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    batch_id = make(worker, [40])

    def pause_at_first(request: Request) -> Finished:
        with worker.database.begin() as connection:
            batch_control.pause(batch_id, "default").fetch_optional(connection)
        engine.answer = held.append
        return echo(request)

    held: list[Request] = []
    engine.answer = pause_at_first
    lane = threading.Thread(target=work, args=(worker,))
    lane.start()
    wait_for(lambda: only(worker, Shard).lines_completed == 1, "the first line is written")
    for request in held:
        engine.end(request.id, echo(request))
    lane.join()
    shard = only(worker, Shard)
    assert shard.state == ShardState.READY
    assert shard.lines_completed == len(engine.asked) < 40
    engine.answer = echo
    work(worker)
    assert only(worker, Shard).lines_completed == len(engine.asked) < 40, "nothing is claimed"
    with worker.database.begin() as connection:
        batch_control.resume(batch_id, "default").fetch_optional(connection)
    work(worker)
    assert (only(worker, Shard).state, only(worker, Shard).lines_completed) == (ShardState.DONE, 40)


def test_a_line_that_ran_has_a_start_time_and_its_duplicate_has_none(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    make(worker, [2], GREEDY)
    work(worker)
    first, duplicate = rows(worker)
    assert first.started_at <= first.finished_at
    assert duplicate.started_at is None


def test_a_line_of_several_prompts_whose_engine_crashed_is_run_again_as_a_whole(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    with worker.database.begin() as connection:
        make_running_batch(connection, [1], options=', "prompt": ["one", "two"]', endpoint=COMPLETIONS_ENDPOINT)
    asked: list[str] = []

    def answer(request: Request) -> Finished | EngineLost:
        asked.append(request.id)
        if len(asked) == 2:
            return EngineLost(request_id=request.id)
        assert isinstance(request.prompt, TextPrompt)
        choice = Choice(reason=FinishReason.STOP, text=request.prompt.text.upper())
        return Finished(request_id=request.id, choices=[choice], usage=Usage(prompt_tokens=3, completion_tokens=2))

    engine.answer = answer
    work(worker)
    (row,) = rows(worker)
    assert [choice["text"] for choice in json.loads(row.answer)["choices"]] == ["ONE", "TWO"]
    assert (row.prompt_tokens, row.completion_tokens) == (6, 4)
    assert asked == [row.id, f"{row.id}.1"] * 2


@pytest.mark.parametrize("way", ["refused", "unheard"])
@pytest.mark.parametrize("number", range(5))
def test_each_transaction_of_a_shard_may_fail_or_be_committed_without_a_reply(
    number: int, way: str, worker: WorkerContext, engine: ScriptedEngine, valkey: Any
) -> None:
    """F29, F31: the transaction is repeated, and its results count once."""
    make(worker, [3])
    database = SickDatabase(worker.database)
    worker = replace(worker, database=database, claims=database)
    num_begun = 0

    def count() -> None:
        nonlocal num_begun
        num_begun += 1
        if num_begun == number + 2:  # after the claim; the last one is the next claim
            setattr(database, way, 1)

    database.on_use = count
    work(worker)
    assert {row.state for row in rows(worker)} == {JobState.COMPLETED}
    assert (only(worker, Shard).state, only(worker, Shard).lines_completed) == (ShardState.DONE, 3)
    assert only(worker, Batch).status == BatchState.FINALIZING
    assert only(worker, UsageDaily).requests == 3
    assert valkey.llen("millrace:clerk") == 1


def finished(request: Request, answer: str) -> Finished:
    choices = [Choice(reason=FinishReason.STOP, text=answer)]
    return Finished(request_id=request.id, choices=choices, usage=Usage(prompt_tokens=3, completion_tokens=2))


def test_a_group_of_results_ends_once_its_answers_are_long_and_the_rest_follows_at_once(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    """Identical lines end together, and one statement takes a gigabyte at most."""
    worker = with_settings(worker, commit_lines=8, commit_seconds=3600)
    make(worker, [9], GREEDY)
    change_body(worker, 9, "another")
    held: list[Request] = []

    def answer(request: Request) -> Finished | None:
        if request.prompt.messages[0]["content"] == "hello":  # type: ignore[union-attr]
            return finished(request, 9_000_000 * "x")
        held.append(request)
        return None

    def num_written() -> int:
        with worker.database.begin() as connection:
            return connection.execute(select(func.count()).where(Job.state == JobState.COMPLETED)).scalar_one()

    engine.answer = answer
    lane = threading.Thread(target=work, args=(worker,))
    lane.start()
    wait_for(lambda: num_written() == 8, "the identical lines are written while another one runs")
    engine.end(held[0].id, echo(held[0]))
    lane.join(20)
    with worker.database.begin() as connection:
        sizes = select(func.count()).select_from(Job).group_by(Job.finish_xact).order_by(Job.finish_xact)
        assert list(connection.execute(sizes).scalars()) == [4, 4, 1]


@contextmanager
def refused(worker: WorkerContext, table: str, condition: str) -> Iterator[None]:
    """Let the database refuse new rows of a table, unless they meet a condition."""
    with worker.database.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} ADD CONSTRAINT refused CHECK ({condition}) NOT VALID"))
    try:
        yield
    finally:
        with worker.database.begin() as connection:
            connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT refused"))


def test_an_answer_that_the_database_refuses_is_a_failed_line_and_its_neighbours_are_written(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    make(worker, [10])
    change_body(worker, 4, "refused")
    with refused(worker, "jobs", "answer NOT LIKE '%refused%'"):
        work(worker)
    done = rows(worker)
    assert len(engine.asked) == 10
    assert [row.line for row in done if row.state == JobState.COMPLETED] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    problem = json.loads(done[3].problem)
    assert (done[3].state, problem["status"], problem["code"]) == (JobState.FAILED, 500, "server_error")
    shard = only(worker, Shard)
    assert (shard.state, shard.lines_completed, shard.lines_failed) == (ShardState.DONE, 9, 1)
    assert only(worker, UsageDaily).requests == 10


def test_a_shard_of_which_the_database_refuses_everything_is_abandoned(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    """Repeats would have no end, and its lease runs out for a worker that may be able to write."""
    make(worker, [3])
    with refused(worker, "shards", "lines_completed + lines_failed = 0"):
        work(worker)
    assert {row.state for row in rows(worker)} == {JobState.QUEUED}
    assert only(worker, Shard).state == ShardState.RUNNING
    with worker.database.begin() as connection:
        connection.execute(update(Shard).values(lease_until=func.now()))
    work(worker)
    assert {row.state for row in rows(worker)} == {JobState.COMPLETED}


def num_kept() -> int:
    """Parts of shards that are in memory still."""
    return sum(type(each) in (ShardRun, LineRun, Line) for each in gc.get_objects())


@pytest.mark.usefixtures("without_gc")
def test_nothing_of_a_shard_that_was_left_waits_for_the_garbage_collector(
    worker: WorkerContext, engine: ScriptedEngine
) -> None:
    """Its collections are rare, and a shard holds the bodies of its lines."""
    make(worker, [20, 20])
    work(worker)
    wait_for(lambda: num_kept() == 0, "the engine's thread has let go of the last outcome")
    make(worker, [20])
    lanes = ShardLanes(worker, worker.models["fake"])

    def drain_at_tenth(request: Request) -> Finished | None:
        if len(engine.asked) < 50:
            return echo(request)
        lanes.drain(abort=True)
        return None

    engine.answer = drain_at_tenth
    lanes.work()
    assert {row.state for row in rows(worker)} == {JobState.COMPLETED, JobState.QUEUED}
    wait_for(lambda: num_kept() == 0, "the engine's thread has let go of the last outcome")
