"""Statements that count waiting work and held leases of all tenants, in all and by model."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Label,
    ScalarSelect,
    and_,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
)

from core.states import FINAL_BATCH_STATES, BatchState, JobState, ShardState
from db.query import Query
from db.tables import Base, Batch, Job, Shard

_TENTH: Final = 10  # of its window must have passed before a batch is called at risk


class Backlog(NamedTuple):
    """Waiting chat jobs, lines and batches for the clerk; the age in seconds of the oldest of each; held leases."""

    chats: int
    chat_seconds: float
    lines: int
    line_seconds: float
    clerk_batches: int
    clerk_seconds: float
    job_leases: int
    shard_leases: int


class ModelChats(NamedTuple):
    """The chat jobs that wait for a model, and the age of the oldest in seconds."""

    model: str
    waiting: int
    seconds: float


class ModelLines(NamedTuple):
    """The lines without a result that a model has in batches that may run.

    `running` batches have a shard at a worker; `waiting` ones have not, the first of them for `seconds`.
    """

    model: str
    lines: int
    running: int
    waiting: int
    seconds: float


class OpenBatches(NamedTuple):
    """The batches of a status that have not ended.

    `at_risk` of them, at the pace since they began, do not end within their windows; the first window ends in `seconds_left`,
    None without one.
    """

    status: BatchState
    batches: int
    at_risk: int
    seconds_left: float | None


def open_batches() -> Query[OpenBatches]:
    """Count batches that have not ended, by the indexes of open batches and open shards.

    A batch is at risk whose lines left need more time than its window has left, by the lines that ended since it began; and one
    that has used a tenth of its window without any.
    """
    left = func.coalesce(func.sum(Shard.lines - Shard.lines_completed - Shard.lines_failed), 0)
    each = (
        select(
            Batch.status,
            Batch.lines,
            left.label("left"),
            func.extract("epoch", func.now() - Batch.in_progress_at).label("used"),
            func.extract("epoch", Batch.expires_at - func.now()).label("remaining"),
        )
        .outerjoin(Shard, and_(Shard.batch_id == Batch.id, Shard.state != ShardState.DONE))
        .where(Batch.status.not_in(FINAL_BATCH_STATES))
        .group_by(Batch.id)
        .subquery()
    )
    used, remaining, lines_left = each.c.used, each.c.remaining, each.c.left
    is_slow = used * lines_left > remaining * (each.c.lines - lines_left)
    is_measured = used * _TENTH > used + remaining
    at_risk = (each.c.status == BatchState.IN_PROGRESS) & (lines_left > 0) & is_measured & is_slow
    statement = select(
        each.c.status,
        func.count().label("batches"),
        func.count().filter(at_risk).label("at_risk"),
        cast(func.min(remaining).filter(lines_left > 0), Float).label("seconds_left"),
    )
    return Query(statement.group_by(each.c.status), OpenBatches)


def chats_by_model() -> Query[ModelChats]:
    """Count waiting chats by model, by their index."""
    is_waiting = (Job.state == JobState.QUEUED, Job.batch_id.is_(None))
    statement = select(Job.model, func.count().label("waiting"), _age(func.min(Job.created_at)).label("seconds"))
    return Query(statement.where(*is_waiting).group_by(Job.model), ModelChats)


def lines_by_model() -> Query[ModelLines]:
    """Count the lines that are left by model, by the index of open shards."""
    since = func.greatest(Batch.in_progress_at, Batch.resumed_at)
    each = (
        select(
            Shard.model,
            func.sum(Shard.lines - Shard.lines_completed - Shard.lines_failed).label("lines"),
            func.bool_or(Shard.state == ShardState.RUNNING).label("is_running"),
            since.label("since"),
        )
        .join(Batch, Batch.id == Shard.batch_id)
        .where(Batch.status == BatchState.IN_PROGRESS, Batch.paused_at.is_(None), Shard.state != ShardState.DONE)
        .group_by(Shard.model, Batch.id)
        .subquery()
    )
    statement = select(
        each.c.model,
        cast(func.sum(each.c.lines), BigInteger).label("lines"),
        func.count().filter(each.c.is_running).label("running"),
        func.count().filter(~each.c.is_running).label("waiting"),
        _age(func.min(each.c.since).filter(~each.c.is_running)).label("seconds"),
    )
    return Query(statement.group_by(each.c.model), ModelLines)


def backlog() -> Query[Backlog]:
    """Count by indexes only, so that the cost grows with open work, not with all rows."""
    statement = select(
        *_waiting_chats(),
        *_waiting_lines(),
        *_waiting_for_clerk(),
        _count(Job, Job.state == JobState.RUNNING, Job.batch_id.is_(None)).label("job_leases"),
        _count(Shard, Shard.state == ShardState.RUNNING).label("shard_leases"),
    )
    return Query(statement, Backlog)


def _waiting_chats() -> tuple[Label[int], Label[float]]:
    is_waiting = (Job.state == JobState.QUEUED, Job.batch_id.is_(None))
    oldest = select(_age(func.min(Job.created_at))).where(*is_waiting).scalar_subquery()
    return _count(Job, *is_waiting).label("chats"), oldest.label("chat_seconds")


def _waiting_lines() -> tuple[Label[int], Label[float]]:
    """Count lines without a result in batches that may run. The age is that of the batch that has waited longest for a
    worker to take any of its shards; a batch with a running shard does not wait.
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


def _waiting_for_clerk() -> tuple[Label[int], Label[float]]:
    """Count batches that wait for prepare or finalize."""
    is_waiting = or_(Batch.status == BatchState.VALIDATING, Batch.status == BatchState.FINALIZING)
    oldest = (
        select(_age(func.min(func.coalesce(Batch.finalizing_at, Batch.created_at)))).where(is_waiting).scalar_subquery()
    )
    return _count(Batch, is_waiting).label("clerk_batches"), oldest.label("clerk_seconds")


def _count(table: type[Base], *conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    return select(func.count()).select_from(table).where(*conditions).scalar_subquery()


def _age(moment: ColumnElement[datetime]) -> ColumnElement[float]:
    return cast(func.coalesce(func.extract("epoch", func.now() - moment), literal(0)), Float)
