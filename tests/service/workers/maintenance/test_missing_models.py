"""Lines and jobs of a model whose files are gone fail after a grace; those of a model that may come back wait."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from core.models.live_catalog import LiveCatalog
from core.states import BatchState, EngineState, JobState
from db import batches, shards
from db.batch_control import pause
from db.tables import DEFAULT_TENANT, Batch, Job
from tests.support.model_files import write_model
from tests.support.rows import make_job, make_running_batch
from tests.support.worker_rows import report_engine
from workers.batches.finalize import finalize
from workers.context import ClerkContext
from workers.maintenance.missing_models import MissingModels

GRACE = 600.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def swept_for(clerk: ClerkContext, seconds: float) -> MissingModels:
    """Sweep now and after this time."""
    clock = Clock()
    sweeper = MissingModels(clerk, clock)
    sweeper.sweep()
    clock.now = seconds
    sweeper.sweep()
    return sweeper


def make_batch_of(clerk: ClerkContext, model: str, sizes: tuple[int, ...] = (2, 1)) -> str:
    with clerk.database.begin() as connection:
        return make_running_batch(connection, sizes, model=model)[0]


def states_of(clerk: ClerkContext, batch_id: str) -> set[JobState]:
    with clerk.database.begin() as connection:
        return set(connection.execute(select(Job.state).where(Job.batch_id == batch_id)).scalars())


def finished(clerk: ClerkContext, batch_id: str) -> tuple[Any, list[dict[str, Any]]]:
    """Finalize the batch; return its row and the lines of its error file."""
    with clerk.database.begin() as connection:
        assert batches.begin_finalizing(batch_id).fetch_optional(connection) is not None, "no shard is open"
    finalize(clerk, batch_id)
    with clerk.database.begin() as connection:
        row = connection.execute(select(Batch.__table__).where(Batch.id == batch_id)).one()
    with clerk.files.open(row.error_file_id) as stream:
        return row, [json.loads(line) for line in stream.read().splitlines()]


def test_lines_of_a_model_without_a_model_file_fail_after_the_grace(clerk: ClerkContext) -> None:
    batch_id = make_batch_of(clerk, "gone")
    swept_for(clerk, GRACE - 1)
    assert states_of(clerk, batch_id) == {JobState.QUEUED}
    swept_for(clerk, GRACE)
    row, errors = finished(clerk, batch_id)
    assert (row.status, row.lines, row.lines_failed, row.output_file_id) == (BatchState.COMPLETED, 3, 3, None)
    assert [each["response"]["status_code"] for each in errors] == [404, 404, 404]
    error = errors[0]["response"]["body"]["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "The model 'gone' is gone: no file in models_dir describes it." in error["message"]


def test_lines_of_a_model_whose_weights_are_gone_fail_and_its_answered_lines_are_kept(clerk: ClerkContext) -> None:
    batch_id = make_batch_of(clerk, "fake", (1, 2))
    with clerk.database.begin() as connection:
        claim = shards.claim_next_shard("fake", "w", timedelta(seconds=60)).fetch_one(connection)
        answer = {
            "state": JobState.COMPLETED,
            "answer": "{}",
            "finished_at": select(Job.created_at).limit(1).scalar_subquery(),
        }
        connection.execute(update(Job).where(Job.shard_id == claim.id).values(**answer))
        connection.execute(shards.leave_shard(claim.id, claim.fence))
    report_engine(clerk.database, "fake", EngineState.MISSING, reason="There is no model file a.gguf.")
    swept_for(clerk, GRACE)
    row, errors = finished(clerk, batch_id)
    assert (row.lines_completed, row.lines_failed) == (1, 2)
    assert "There is no model file a.gguf." in errors[0]["response"]["body"]["error"]["message"]


def test_a_model_that_is_back_for_one_sweep_has_the_whole_grace_again(clerk: ClerkContext) -> None:
    batch_id = make_batch_of(clerk, "fake")
    clock = Clock()
    sweeper = MissingModels(clerk, clock)
    for now, state in ((0, EngineState.MISSING), (500, EngineState.LOADING), (510, EngineState.MISSING)):
        clock.now = now
        report_engine(clerk.database, "fake", state)
        sweeper.sweep()
    clock.now = 1000
    sweeper.sweep()
    assert states_of(clerk, batch_id) == {JobState.QUEUED}
    clock.now = 1110
    sweeper.sweep()
    assert states_of(clerk, batch_id) == {JobState.FAILED}


def test_lines_that_may_still_run_wait(clerk: ClerkContext) -> None:
    """Their model is not gone: its worker is away, its file cannot be loaded, a lease is held, the batch is paused."""
    waiting = [make_batch_of(clerk, "fake")]
    swept_for(clerk, GRACE)
    report_engine(clerk.database, "fake", EngineState.FAILED, reason="It is cut.")
    swept_for(clerk, GRACE)
    waiting.append(make_batch_of(clerk, "paused"))
    waiting.append(make_batch_of(clerk, "held"))
    with clerk.database.begin() as connection:
        pause(waiting[1], DEFAULT_TENANT).fetch_one(connection)
        for _ in range(2):
            shards.claim_next_shard("held", "w", timedelta(seconds=60)).fetch_one(connection)
    swept_for(clerk, GRACE)
    assert [states_of(clerk, batch_id) for batch_id in waiting] == [{JobState.QUEUED}] * 3


def test_jobs_of_a_model_that_is_gone_fail_too(clerk: ClerkContext) -> None:
    with clerk.database.begin() as connection:
        gone, waiting = make_job(connection, "gone"), make_job(connection, "fake")
    swept_for(clerk, GRACE)
    with clerk.database.begin() as connection:
        rows = {row.id: row for row in connection.execute(select(Job.id, Job.state, Job.problem))}
    assert (rows[gone].state, rows[waiting].state) == (JobState.FAILED, JobState.QUEUED)
    assert '"model_not_found"' in rows[gone].problem


def test_a_file_that_goes_and_comes_back_while_the_clerk_runs_is_noticed(clerk: ClerkContext, tmp_path: Path) -> None:
    file = write_model(tmp_path, "later")
    clerk = replace(clerk, live_catalog=LiveCatalog(tmp_path))
    clock = Clock()
    sweeper = MissingModels(clerk, clock)
    batch_id = make_batch_of(clerk, "later")
    for seconds, is_there in (
        (0, True),
        (GRACE, False),
        (2 * GRACE - 1, True),
        (2 * GRACE, False),
        (3 * GRACE - 1, False),
    ):
        clock.now = seconds
        if is_there:
            write_model(tmp_path, "later")
        else:
            file.unlink(missing_ok=True)
        clerk.live_catalog.refresh()
        sweeper.sweep()
        assert states_of(clerk, batch_id) == {JobState.QUEUED}
    clock.now = 3 * GRACE
    sweeper.sweep()
    assert states_of(clerk, batch_id) == {JobState.FAILED}
