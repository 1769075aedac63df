"""Statements on batches: create, show, and each legal move as one conditional UPDATE."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Insert, Select, Update, exists, func, insert, or_, select, update

from core.states import BATCH_MOVES, FINAL_BATCH_STATES, BatchState, JobState, ShardState
from db.batch_results import this_transaction
from db.tables import Batch, Job, Shard


def insert_batch(**columns: Any) -> Insert:  # Any: the columns' own types
    """A batch that waits for prepare."""
    return insert(Batch).values(**columns).returning(Batch)


def find_batch(batch_id: str, tenant_id: str) -> Select[Batch]:
    """A batch of this tenant."""
    return select(Batch).where(Batch.id == batch_id, Batch.tenant_id == tenant_id)


def list_batches(tenant_id: str, *, after: str | None, limit: int) -> Select[Batch]:
    """Newest first, from behind `after`; ids sort by time."""
    query = select(Batch).where(Batch.tenant_id == tenant_id)
    if after is not None:
        query = query.where(Batch.id < after)
    return query.order_by(Batch.id.desc()).limit(limit)


def running_totals(batch_ids: list[str]) -> Select[str, int, int, int, int, int, int]:
    """Per batch: completed and failed lines, prompt, completion, cached and reasoning tokens of its shards so far."""
    return (
        select(
            Shard.batch_id,
            func.sum(Shard.lines_completed),
            func.sum(Shard.lines_failed),
            func.sum(Shard.prompt_tokens),
            func.sum(Shard.completion_tokens),
            func.sum(Shard.cached_tokens),
            func.sum(Shard.reasoning_tokens),
        )
        .where(Shard.batch_id.in_(batch_ids))
        .group_by(Shard.batch_id)
    )


def move(batch_id: str, to: BatchState, **columns: Any) -> Any:  # Any: the columns' types; ReturningUpdate
    """Enter a state from any state that may lead there; no row means that the batch is elsewhere by now.

    `<state>_at` is set along, so that the object tells its own history.
    """
    came_from = tuple(source for source, moves in BATCH_MOVES.items() if to in moves)
    return (
        update(Batch)
        .where(Batch.id == batch_id, Batch.status.in_(came_from))
        .values(status=to, **{f"{to}_at": func.now()}, **columns)
        .returning(Batch.id, Batch.tenant_id)
    )


def start(
    batch_id: str, *, lines: int, lines_failed: int, model: str | None, queued_tokens: int = 0
) -> Any:  # Any: ReturningUpdate
    """The file was good: the batch runs, and its window counts from its creation."""
    window = func.make_interval(0, 0, 0, 0, 0, 0, Batch.window_seconds)
    return move(
        batch_id,
        BatchState.IN_PROGRESS,
        lines=lines,
        lines_failed=lines_failed,
        model=model,
        queued_tokens=queued_tokens,
        expires_at=Batch.created_at + window,
    )


def begin_finalizing(batch_id: str) -> Any:  # Any: ReturningUpdate
    """All shards are done: the batch goes on to its files. No row: some are not, or it is past this point."""
    open_shard = exists().where(Shard.batch_id == batch_id, Shard.state != ShardState.DONE)
    return move(batch_id, BatchState.FINALIZING, outcome=BatchState.COMPLETED).where(
        Batch.status == BatchState.IN_PROGRESS, ~open_shard
    )


def is_ready_to_finalize(batch_id: str) -> Select[bool]:
    """Is the batch closing, with no live worker on it? Then finalize may run."""
    held = exists().where(Shard.batch_id == batch_id, Shard.state == ShardState.RUNNING, Shard.lease_until > func.now())
    closing = exists().where(Batch.id == batch_id, Batch.status.in_((BatchState.FINALIZING, BatchState.CANCELLING)))
    return select(closing & ~held)


def expire_batches() -> Any:  # Any: ReturningUpdate
    """Batches whose window is over stop taking lines."""
    return (
        update(Batch)
        .where(Batch.status == BatchState.IN_PROGRESS, Batch.expires_at < func.now())
        .values(status=BatchState.FINALIZING, outcome=BatchState.EXPIRED, finalizing_at=func.now())
        .returning(Batch.id)
    )


def batches_due(age: timedelta, unheard: timedelta, limit: int) -> Select[str, BatchState, bool]:
    """Batches whose next step is the clerk's and whose ticket must have been lost; and whether that step has been due for
    as long as `unheard`, however many tickets there were.
    """
    due_at = func.coalesce(Batch.cancelling_at, Batch.finalizing_at, Batch.created_at)
    is_unheard = (Batch.status != BatchState.IN_PROGRESS) & (due_at < func.now() - unheard)
    open_shard = exists().where(Shard.batch_id == Batch.id, Shard.state != ShardState.DONE)
    needs_clerk = or_(
        Batch.status.in_((BatchState.VALIDATING, BatchState.FINALIZING, BatchState.CANCELLING)),
        (Batch.status == BatchState.IN_PROGRESS) & ~open_shard,
    )
    return (
        select(Batch.id, Batch.status, is_unheard)
        .where(Batch.status.not_in(FINAL_BATCH_STATES), needs_clerk, Batch.dispatched_at < func.now() - age)
        .order_by(Batch.dispatched_at)
        .limit(limit)
    )


def mark_batches_dispatched(batch_ids: list[str]) -> Update:
    """Another ticket is on its way."""
    return update(Batch).where(Batch.id.in_(batch_ids)).values(dispatched_at=func.now())


def try_lock(batch_id: str) -> Select[bool]:
    """One clerk at a time per batch, until the transaction ends; not held by a row, so that a cancel need not wait."""
    return select(func.pg_try_advisory_xact_lock(func.hashtextextended(batch_id, 0)))


def close_shards(batch_id: str) -> Update:
    """No more writes from workers: whoever still held a shard has lost it."""
    return (
        update(Shard)
        .where(Shard.batch_id == batch_id, Shard.state != ShardState.DONE)
        .values(state=ShardState.DONE, owner=None, lease_until=None, fence=Shard.fence + 1)
    )


def end_leftover_lines(batch_id: str, state: JobState, problem: str) -> Update:
    """Lines that never ran end with their batch."""
    return (
        update(Job)
        .where(Job.batch_id == batch_id, Job.state == JobState.QUEUED)
        .values(state=state, problem=problem, finished_at=func.now(), finish_xact=this_transaction())
    )


def line_totals(batch_id: str) -> Select[int, int, int | None, int | None, int | None, int | None]:
    """The truth about a batch, from its lines: completed, failed; prompt, completion, cached and reasoning tokens."""
    completed = func.count().filter(Job.state == JobState.COMPLETED)
    return select(
        completed,
        func.count() - completed,
        func.coalesce(func.sum(Job.prompt_tokens), 0),
        func.coalesce(func.sum(Job.completion_tokens), 0),
        func.coalesce(func.sum(Job.cached_tokens), 0),
        func.coalesce(func.sum(Job.reasoning_tokens), 0),
    ).where(Job.batch_id == batch_id)


def result_rows(
    batch_id: str, after_line: int, limit: int
) -> Select[int | None, str, str | None, JobState, str | None, str | None]:
    """Ended lines in input order, a page at a time: line, id, custom_id, state, answer, problem."""
    return (
        select(Job.line, Job.id, Job.custom_id, Job.state, Job.answer, Job.problem)
        .where(Job.batch_id == batch_id, Job.line > after_line, Job.finished_at.is_not(None))
        .order_by(Job.line)
        .limit(limit)
    )
