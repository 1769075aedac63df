"""What waits and what is held, over all tenants: numbers for those who watch the service."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Float, cast, exists, func, literal, or_, select

from core.states import BatchState, JobState, ShardState
from db.tables import Batch, Job, Shard


def backlog() -> Any:  # Any: a Select of eight numbers
    """Of chats, batches and the clerk: how many wait (jobs, lines, batches), how many seconds the first of them has; and the
    leases that are held on jobs and shards. All of it by index, so it costs what is open, not what there ever was.
    """
    return select(
        *_waiting_chats(),
        *_waiting_lines(),
        *_waiting_for_clerk(),
        _count(Job, Job.state == JobState.RUNNING, Job.batch_id.is_(None)).label("job_leases"),
        _count(Shard, Shard.state == ShardState.RUNNING).label("shard_leases"),
    )


def _waiting_chats() -> tuple[Any, Any]:
    is_waiting = (Job.state == JobState.QUEUED, Job.batch_id.is_(None))
    oldest = select(_age(func.min(Job.created_at))).where(*is_waiting).scalar_subquery()
    return _count(Job, *is_waiting).label("chats"), oldest.label("chat_seconds")


def _waiting_lines() -> tuple[Any, Any]:
    """Lines without a result in batches that may run; the age is that of the batch that waits longest for a worker to take
    any of it: a batch of which something runs does not wait.
    """
    is_open = (Batch.status == BatchState.IN_PROGRESS, Batch.paused_at.is_(None))
    left = func.sum(Shard.lines - Shard.lines_completed - Shard.lines_failed)
    lines = (
        select(func.coalesce(left, 0))
        .join(Batch, Batch.id == Shard.batch_id)
        .where(*is_open, Shard.state != ShardState.DONE)
        .scalar_subquery()
    )
    of_batch = exists().where(Shard.batch_id == Batch.id)
    oldest = (
        select(_age(func.min(func.greatest(Batch.in_progress_at, Batch.resumed_at))))
        .where(
            *is_open,
            of_batch.where(Shard.state == ShardState.READY),
            ~of_batch.where(Shard.state == ShardState.RUNNING),
        )
        .scalar_subquery()
    )
    return lines.label("lines"), oldest.label("line_seconds")


def _waiting_for_clerk() -> tuple[Any, Any]:
    """Batches whose file is to be read, or whose results are to be written."""
    is_waiting = or_(Batch.status == BatchState.VALIDATING, Batch.status == BatchState.FINALIZING)
    oldest = (
        select(_age(func.min(func.coalesce(Batch.finalizing_at, Batch.created_at)))).where(is_waiting).scalar_subquery()
    )
    return _count(Batch, is_waiting).label("clerk_batches"), oldest.label("clerk_seconds")


def _count(table: Any, *conditions: Any) -> Any:  # Any: a table's class, SQL conditions, a scalar subquery
    return select(func.count()).select_from(table).where(*conditions).scalar_subquery()


def _age(moment: Any) -> Any:  # Any: SQL expressions
    return cast(func.coalesce(func.extract("epoch", func.now() - moment), literal(0)), Float)
