"""Jobs and shards of models of the backend openai: bodies reach the engine as they came, errors keep the status of the server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update

from core.errors import Problem
from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig
from core.states import JobState
from db.tables import Job
from engine.types import Choice, Failed, Finished, FinishReason, ForwardRequest, Usage
from tests.support.rows import make_job, make_running_batch
from tests.support.scripted_engine import ScriptedEngine
from workers.context import ServedModel, WorkerContext
from workers.job_runner import JobRunner
from workers.shards.lanes import ShardLanes

IMAGE = [{"type": "image_url", "image_url": {"url": "data:,"}}]
BODY: dict[str, Any] = {"model": "also-fake", "messages": [{"role": "user", "content": IMAGE}], "unknown": [1]}


def answered(request: ForwardRequest) -> Finished:
    return Finished(
        request_id=request.id,
        choices=[Choice(reason=FinishReason.STOP, text="seen")],
        usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
    )


@pytest.fixture
def upstream(worker: WorkerContext, engine: ScriptedEngine) -> WorkerContext:
    """The context of a worker whose model `fake` is a server upstream."""
    model = ModelConfig(name="fake", backend=BackendKind.OPENAI, base_url=("http://127.0.0.1:9/v1",))
    engine.answer = answered  # type: ignore[assignment]
    served = ServedModel(model=model, engine=engine, model_hash=None)  # type: ignore[arg-type]
    return replace(worker, models={"fake": served})


def run(context: WorkerContext, body: dict[str, Any]) -> Any:
    with context.database.begin() as connection:
        job_id = make_job(connection, "fake", json.dumps(body))
    JobRunner(context).run(job_id)
    return stored(context, job_id)


def stored(context: WorkerContext, job_id: str) -> Any:
    with context.database.begin() as connection:
        return connection.execute(select(Job.__table__).where(Job.id == job_id)).one()


def test_a_job_is_forwarded_as_it_came(upstream: WorkerContext, engine: ScriptedEngine) -> None:
    row = run(upstream, BODY)
    assert json.loads(row.answer)["choices"][0]["message"]["content"] == "seen"
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (3, 2, 1)
    (request,) = engine.asked
    assert isinstance(request, ForwardRequest)
    assert json.loads(request.body) == BODY
    assert (row.model_hash, row.model_parameters) == (None, None), "the weights and defaults of a server are unknown"


def test_the_error_of_a_server_is_that_of_the_job(upstream: WorkerContext, engine: ScriptedEngine) -> None:
    engine.answer = lambda request: Failed(
        request_id=request.id, code="slow_down", message="slow", status=429, kind="rate_limit", retry_seconds=7.2
    )
    row = run(upstream, BODY)
    expected = Problem(status=429, message="slow", type="rate_limit", code="slow_down", retry_seconds=7.2)
    assert (row.state, Problem.from_json(row.problem)) == (JobState.FAILED, expected)


def make_shard(context: WorkerContext, bodies: list[dict[str, Any]]) -> None:
    with context.database.begin() as connection:
        make_running_batch(connection, [len(bodies)])
        for line, body in enumerate(bodies, 1):
            connection.execute(update(Job).where(Job.line == line).values(body=json.dumps(body)))


def lines(context: WorkerContext) -> list[Any]:
    with context.database.begin() as connection:
        return list(connection.execute(select(Job).order_by(Job.line)).all())


def test_each_line_of_a_shard_has_its_own_answer_or_error(upstream: WorkerContext, engine: ScriptedEngine) -> None:
    def answer(request: ForwardRequest) -> Finished | Failed:
        if b"refuse me" in request.body:
            return Failed(request_id=request.id, code="bad", message="no", status=400, param="user")
        return answered(request)

    engine.answer = answer  # type: ignore[assignment]
    make_shard(upstream, [BODY, {**BODY, "user": "refuse me"}, {**BODY, "temperature": 0}, {**BODY, "temperature": 0}])
    ShardLanes(upstream, upstream.models["fake"]).work()
    first, refused, greedy, same = lines(upstream)
    assert [each.state for each in (first, refused, greedy, same)] == [
        JobState.COMPLETED,
        JobState.FAILED,
        JobState.COMPLETED,
        JobState.COMPLETED,
    ]
    assert Problem.from_json(refused.problem) == Problem(status=400, message="no", code="bad", param="user")
    assert len(engine.asked) == 3, "equal greedy lines share an answer"
    assert same.cached_tokens == 3


def test_a_body_that_a_changed_model_does_not_take_fails_alone(worker: WorkerContext, engine: ScriptedEngine) -> None:
    """The bodies were accepted while the model was a server upstream; now an engine of ours has it."""
    row = run(worker, BODY)
    assert row.state == JobState.FAILED
    problem = Problem.from_json(row.problem)
    assert (problem.status, problem.param) == (400, "messages[0].content")
    fine = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
    make_shard(worker, [BODY, fine, {**BODY, "user": "another"}])
    ShardLanes(worker, worker.models["fake"]).work()
    failed, answered_line, also_failed = lines(worker)[:3]
    assert [each.state for each in (failed, answered_line, also_failed)] == [
        JobState.FAILED,
        JobState.COMPLETED,
        JobState.FAILED,
    ]
    assert Problem.from_json(failed.problem) == problem
    assert len(engine.asked) == 1
