"""Statements that end the work of a model whose files are gone: its lines and its other jobs. The clock is the database's."""

from __future__ import annotations

from sqlalchemy import Select, Update, exists, func, select, union, update
from sqlalchemy.sql.dml import ReturningUpdate

from core.states import BatchState, JobState, ShardState
from db.batch_results import this_transaction
from db.query import Query
from db.response_events import EndedJob, with_response_events
from db.shards import is_claimable, models_with_claimable_shards
from db.tables import Batch, Job, Shard


def models_with_waiting_work() -> Select[str]:
    """List the models that lines or other jobs wait for."""
    jobs = select(Job.model).where(Job.state == JobState.QUEUED, Job.batch_id.is_(None))
    waiting = union(jobs, models_with_claimable_shards()).subquery()
    return select(waiting.c.model)


def close_shards(model: str) -> ReturningUpdate[str]:
    """End all shards of a model that could be taken, count every open line as failed, and return their ids.

    Follow with `fail_lines`. Shards of paused batches stay.
    """
    runs = exists().where(Batch.id == Shard.batch_id, Batch.status == BatchState.IN_PROGRESS, Batch.paused_at.is_(None))
    return (
        update(Shard)
        .where(Shard.model == model, is_claimable(), runs)
        .values(
            state=ShardState.DONE,
            owner=None,
            lease_until=None,
            fence=Shard.fence + 1,
            lines_failed=Shard.lines - Shard.lines_completed,
        )
        .returning(Shard.id)
    )


def fail_lines(shard_ids: list[str], problem: str) -> Update:
    """Fail the open lines of shards that have been closed."""
    return (
        update(Job)
        .where(Job.shard_id.in_(shard_ids), Job.state == JobState.QUEUED)
        .values(state=JobState.FAILED, problem=problem, finished_at=func.now(), finish_xact=this_transaction())
    )


def fail_jobs(model: str, problem: str) -> Query[EndedJob]:
    """Fail all jobs that wait for a model and are no lines."""
    end = (
        update(Job)
        .where(Job.model == model, Job.state == JobState.QUEUED, Job.batch_id.is_(None))
        .values(state=JobState.FAILED, problem=problem, finished_at=func.now())
    )
    return with_response_events(end, "response.failed")
