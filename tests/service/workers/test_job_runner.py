"""Job runner: frames of a stream, the row before the end event, and every way a job can end."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import select, update

from core.queue.events import Event, EventKind, decode_event
from core.schemas.endpoints import COMPLETIONS_ENDPOINT
from core.states import JobState
from db import jobs
from db.tables import Job, Quarantine, UsageDaily
from engine.process.client import EngineLost
from engine.types import Delta, Failed, Finished, Request
from tests.support.rows import make_job
from tests.support.scripted_engine import ScriptedEngine, echo
from tests.support.sick import SickDatabase
from tests.support.stack import wait_for
from workers.context import WorkerContext
from workers.job_runner import JobRunner
from workers.runtime.leases import Lease, Renewed


def body(**more: Any) -> str:
    return json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hello"}], **more})


@pytest.fixture
def runner(worker: WorkerContext) -> JobRunner:
    def renew(held: Mapping[str, int]) -> list[Renewed]:
        with worker.database.begin() as connection:
            return [Renewed(*row) for row in jobs.renew_jobs(held, timedelta(seconds=60)).fetch_all(connection)]

    worker.leases._renew = renew
    return JobRunner(worker)


def submit(worker: WorkerContext, **more: Any) -> str:
    with worker.database.begin() as connection:
        return make_job(connection, "fake", body(**more))


def row(worker: WorkerContext, job_id: str) -> Any:
    with worker.database.begin() as connection:
        return connection.execute(select(Job.__table__).where(Job.id == job_id)).one()


def events(worker: WorkerContext, valkey: redis.Redis, job_id: str) -> list[Event]:
    worker.publisher.close()
    return [decode_event(data) for data in valkey.lrange(f"millrace:replay:{job_id}", 0, -1)]  # type: ignore[arg-type]


def test_a_plain_answer_is_in_the_row_before_done_is_published(
    worker: WorkerContext, runner: JobRunner, valkey: redis.Redis
) -> None:
    job_id = submit(worker)
    states = []
    publish = worker.publisher.publish
    worker.publisher.publish = lambda event: (states.append(row(worker, job_id).state), publish(event))  # type: ignore[assignment]
    runner.run(job_id)
    assert states == [JobState.COMPLETED]
    stored = row(worker, job_id)
    answer = json.loads(stored.answer)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert answer["usage"]["total_tokens"] == 5
    assert (stored.prompt_tokens, stored.completion_tokens, stored.cached_tokens) == (3, 2, 1)
    assert (stored.engine_build, stored.model_hash, stored.template_hash) == ("scripted", "hash", "template")
    assert (len(stored.settings_hash), stored.model_parameters) == (64, "{}")
    assert [event.kind for event in events(worker, valkey, job_id)] == [EventKind.DONE]


def test_a_streamed_answer_is_numbered_frames_that_add_up(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine, valkey: redis.Redis
) -> None:
    def answer(request: Request) -> Finished:
        sink = engine.running[request.id]
        for n, text in enumerate(("hel", "lo")):
            sink.on_delta(Delta(request_id=request.id, text=text, num_tokens=n + 1))
        return echo(request)

    engine.answer = answer
    job_id = submit(worker, stream=True, stream_options={"include_usage": True})
    runner.run(job_id)
    seen = events(worker, valkey, job_id)
    frames: list[bytes] = []
    for event in seen:
        assert event.seq == len(frames)
        frames += event.frames
    chunks = [json.loads(frame) for frame in frames]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "hello"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 5
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert seen[-1].kind is EventKind.DONE


def test_a_job_is_run_once_however_many_tickets_come(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine
) -> None:
    job_id = submit(worker)
    for _ in range(3):
        runner.run(job_id)
    runner.run("chatcmpl-unknown")
    assert len(engine.asked) == 1


def test_an_error_of_the_engine_about_the_request_is_a_400(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine, valkey: redis.Redis
) -> None:
    engine.answer = lambda request: Failed(
        request_id=request.id, code="context_length_exceeded", message="too long", param="messages"
    )
    job_id = submit(worker)
    runner.run(job_id)
    assert row(worker, job_id).state == JobState.FAILED
    (event,) = events(worker, valkey, job_id)
    assert event.problem is not None
    assert (event.problem.status, event.problem.code, event.problem.param) == (
        400,
        "context_length_exceeded",
        "messages",
    )


def test_a_crashed_engine_is_a_clear_500(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine, valkey: redis.Redis
) -> None:
    engine.answer = lambda request: EngineLost(request_id=request.id)
    job_id = submit(worker)
    runner.run(job_id)
    (event,) = events(worker, valkey, job_id)
    assert event.problem is not None
    assert (event.problem.status, event.problem.code) == (500, "engine_crash")


def run_and_wait_until_it_runs(runner: JobRunner, engine: ScriptedEngine, job_id: str) -> threading.Thread:
    running = threading.Event()

    def answer(request: Request) -> None:
        running.set()

    engine.answer = answer
    thread = threading.Thread(target=runner.run, args=(job_id,))
    thread.start()
    assert running.wait(20)
    return thread


def test_a_cancel_hint_frees_the_slot_at_once(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine, valkey: redis.Redis
) -> None:
    job_id = submit(worker)
    thread = run_and_wait_until_it_runs(runner, engine, job_id)
    runner.cancel(job_id)
    thread.join(20)
    assert row(worker, job_id).state == JobState.CANCELLED
    assert [event.kind for event in events(worker, valkey, job_id)] == [EventKind.CANCELLED]
    assert runner.is_idle()


def test_a_cancel_stops_every_prompt_of_a_completion(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine
) -> None:
    prompts = json.dumps({"model": "fake", "prompt": ["one", "two", "three"]})
    with worker.database.begin() as connection:
        job_id = make_job(connection, "fake", prompts, COMPLETIONS_ENDPOINT)
    thread = run_and_wait_until_it_runs(runner, engine, job_id)
    wait_for(lambda: len(engine.running) == 3, "all prompts run")
    runner.cancel(job_id)
    thread.join(20)
    assert row(worker, job_id).state == JobState.CANCELLED
    assert engine.running == {}


def test_a_job_that_is_cancelled_before_its_call_starts_is_stopped(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine
) -> None:
    engine.answer = lambda _: None
    hold = worker.leases.hold

    def hold_a_cancelled_job(job_id: str, *rest: Any) -> Lease:
        lease = hold(job_id, *rest)
        with worker.database.begin() as connection:
            connection.execute(jobs.request_cancel(job_id))
        worker.leases.beat()
        return lease

    worker.leases.hold = hold_a_cancelled_job  # type: ignore[assignment, method-assign]
    job_id = submit(worker)
    runner.run(job_id)
    assert row(worker, job_id).state == JobState.CANCELLED


def test_a_cancel_whose_hint_was_lost_is_seen_with_the_heartbeat(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine
) -> None:
    job_id = submit(worker)
    thread = run_and_wait_until_it_runs(runner, engine, job_id)
    with worker.database.begin() as connection:
        connection.execute(jobs.request_cancel(job_id))
    worker.leases.beat()
    thread.join(20)
    assert row(worker, job_id).state == JobState.CANCELLED


def test_a_lost_lease_ends_the_work_and_changes_nothing(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine, valkey: redis.Redis
) -> None:
    job_id = submit(worker)
    thread = run_and_wait_until_it_runs(runner, engine, job_id)
    with worker.database.begin() as connection:
        connection.execute(update(Job).values(fence=Job.fence + 1, owner="other"))
    worker.leases.beat()
    thread.join(20)
    assert (row(worker, job_id).state, row(worker, job_id).owner) == (JobState.RUNNING, "other")
    assert events(worker, valkey, job_id) == []
    assert engine.running == {}


def test_a_draining_worker_gives_its_jobs_back(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine, valkey: redis.Redis
) -> None:
    job_id = submit(worker)
    thread = run_and_wait_until_it_runs(runner, engine, job_id)
    runner.drain()
    assert not runner.is_idle()
    runner.drain(abort=True)
    thread.join(20)
    assert (row(worker, job_id).state, row(worker, job_id).attempt) == (JobState.QUEUED, 0)
    assert valkey.llen("millrace:chat.fake") == 1
    runner.run(job_id)
    assert row(worker, job_id).state == JobState.QUEUED, "a draining worker takes nothing"


def quarantined(worker: WorkerContext) -> list[Any]:
    with worker.database.begin() as connection:
        return list(connection.execute(select(Quarantine.__table__)).all())


def test_a_job_that_only_waited_in_an_engine_that_died_is_run_again(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine
) -> None:
    engine.answer = lambda request: EngineLost(request_id=request.id, was_running=False)
    job_id = submit(worker)
    runner.run(job_id)
    stored = row(worker, job_id)
    assert (stored.state, stored.attempt) == (JobState.QUEUED, 0)
    engine.answer = echo
    runner.run(job_id)
    assert row(worker, job_id).state == JobState.COMPLETED
    assert quarantined(worker) == []


def test_a_stream_that_has_sent_frames_is_not_started_again(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine
) -> None:
    def answer(request: Request) -> EngineLost:
        engine.running[request.id].on_delta(Delta(request_id=request.id, text="hel", num_tokens=1))
        return EngineLost(request_id=request.id, was_running=False)

    engine.answer = answer
    job_id = submit(worker, stream=True)
    runner.run(job_id)
    assert row(worker, job_id).state == JobState.FAILED
    assert quarantined(worker) == [], "the engine was not running it"


def test_a_job_that_crashed_beside_others_runs_alone_when_it_is_sent_again_and_is_cleared(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine
) -> None:
    engine.answer = lambda request: EngineLost(request_id=request.id)
    runner.run(submit(worker))
    assert [entry.crashes for entry in quarantined(worker)] == [0]
    engine.answer = echo
    job_id = submit(worker, stream=True)
    runner.run(job_id)
    assert engine.asked[-1].exclusive, "the fingerprint does not depend on `stream`"
    assert row(worker, job_id).state == JobState.COMPLETED
    assert quarantined(worker) == []
    runner.run(submit(worker))
    assert not engine.asked[-1].exclusive


def test_a_job_that_crashed_the_engine_alone_twice_is_refused_from_then_on(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine, valkey: redis.Redis
) -> None:
    engine.answer = lambda request: EngineLost(request_id=request.id, was_alone=True)
    for _ in range(2):
        runner.run(submit(worker))
    job_id = submit(worker)
    runner.run(job_id)
    assert len(engine.asked) == 2
    (event,) = events(worker, valkey, job_id)
    assert event.problem is not None
    assert (event.problem.status, event.problem.code) == (400, "engine_crash")
    assert row(worker, job_id).state == JobState.FAILED
    engine.answer = echo
    other = submit(worker, max_tokens=3)
    runner.run(other)
    assert row(worker, other).state == JobState.COMPLETED


@pytest.fixture
def sick(worker: WorkerContext) -> SickDatabase:
    """The runner's database, which may fail from the engine call on."""
    database = SickDatabase(worker.database)
    object.__setattr__(worker, "database", database)
    return database


@pytest.mark.parametrize("way", ["refused", "unheard"])
def test_an_answer_is_written_again_after_an_error_of_the_database(
    way: str, worker: WorkerContext, runner: JobRunner, sick: SickDatabase, valkey: redis.Redis
) -> None:
    """F29, F31: also if the commit succeeded and its reply was lost."""
    job_id = submit(worker)
    setattr(sick, way, 3)
    runner.run(job_id)
    assert getattr(sick, way) < 3
    assert row(worker, job_id).state == JobState.COMPLETED
    with worker.database.begin() as connection:
        assert connection.execute(select(UsageDaily.requests)).scalar_one() == 1
    assert [event.kind for event in events(worker, valkey, job_id)] == [EventKind.DONE]


@pytest.mark.parametrize("way", ["refused", "unheard"])
def test_a_failure_is_written_again_after_an_error_of_the_database(
    way: str,
    worker: WorkerContext,
    runner: JobRunner,
    sick: SickDatabase,
    engine: ScriptedEngine,
    valkey: redis.Redis,
) -> None:
    job_id = submit(worker)

    def crash(request: Request) -> EngineLost:
        setattr(sick, way, 2)
        return EngineLost(request_id=request.id)

    engine.answer = crash
    runner.run(job_id)
    assert row(worker, job_id).state == JobState.FAILED
    with worker.database.begin() as connection:
        assert connection.execute(select(Quarantine.crashes)).scalar_one() == 0
    assert [event.kind for event in events(worker, valkey, job_id)] == [EventKind.FAILED]


def test_an_answer_whose_lease_is_lost_is_dropped_and_logged(
    worker: WorkerContext, runner: JobRunner, sick: SickDatabase, engine: ScriptedEngine, valkey: redis.Redis
) -> None:
    job_id = submit(worker)

    def answer(request: Request) -> Finished:
        sick.refused = 1000
        for lease in worker.leases._leases.values():
            lease.is_lost = True
        return echo(request)

    engine.answer = answer
    runner.run(job_id)
    assert sick.refused == 999
    sick.refused = 0
    assert row(worker, job_id).state == JobState.RUNNING
    assert events(worker, valkey, job_id) == []
    assert runner.is_idle()


def test_a_retired_model_takes_no_jobs_and_gives_back_what_no_client_has_read(
    worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine, valkey: redis.Redis
) -> None:
    unread, read = submit(worker), submit(worker, stream=True)
    threads = [run_and_wait_until_it_runs(runner, engine, job_id) for job_id in (unread, read)]
    sink = engine.running[read]
    sink.on_delta(Delta(request_id=read, num_tokens=1, text="seen"))
    runner.retire("fake", abort=False)
    assert runner.num_running("fake") == 2
    runner.retire("fake", abort=True)
    threads[0].join(20)
    assert (row(worker, unread).state, row(worker, unread).attempt) == (JobState.QUEUED, 0)
    assert valkey.llen("millrace:chat.fake") == 1, "another worker may take it"
    assert (row(worker, read).state, runner.num_running("fake")) == (JobState.RUNNING, 1)
    runner.run(unread)
    assert row(worker, unread).state == JobState.QUEUED, "a retired model takes none"
    engine.end(read, echo(engine.asked[-1]))
    threads[1].join(20)
    assert (row(worker, read).state, runner.num_running("fake")) == (JobState.COMPLETED, 0)
    runner.reinstate("fake")
    engine.answer = echo
    runner.run(unread)
    assert (row(worker, unread).state, runner.num_begun("fake")) == (JobState.COMPLETED, 1)


def test_a_claim_in_progress_keeps_its_model(worker: WorkerContext, runner: JobRunner, engine: ScriptedEngine) -> None:
    job_id = submit(worker)
    claim, counts = runner._claim, []

    def claim_late(*given: Any) -> Any:
        runner.retire("fake", abort=True)
        counts.append(runner.num_running("fake"))
        return claim(*given)

    runner._claim = claim_late  # type: ignore[assignment, method-assign]
    runner.run(job_id)
    assert counts == [1]
    assert (row(worker, job_id).state, runner.num_running("fake")) == (JobState.QUEUED, 0)
    assert engine.running == {}


def test_a_job_of_a_model_that_is_not_here_is_left_to_others(worker: WorkerContext, runner: JobRunner) -> None:
    with worker.database.begin() as connection:
        job_id = make_job(connection, "other", body())
    runner.run(job_id)
    assert (row(worker, job_id).state, row(worker, job_id).fence) == (JobState.QUEUED, 0)
