"""Statements on batches: create, show, and each legal move as one conditional UPDATE."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, TextClause, Update, bindparam, exists, func, insert, or_, select, text, update
from sqlalchemy.sql.dml import ReturningUpdate

from core.states import BATCH_MOVES, FINAL_BATCH_STATES, BatchState, JobState, ShardState
from db.batch_results import this_transaction
from db.query import Query, columns_of, total
from db.tables import Batch, File, Job, Shard


class BatchRow(NamedTuple):
    """A batch. Its counts and tokens are complete once it has ended; before, those of its shards are to be added."""

    id: str
    tenant_id: str
    key_id: str | None
    endpoint: str
    model: str | None
    status: BatchState
    outcome: BatchState | None
    input_file_id: str
    input_file_name: str | None
    output_file_id: str | None
    error_file_id: str | None
    completion_window: str
    window_seconds: int
    output_expires_seconds: int | None
    metadata_json: str | None
    parent_batch_id: str | None
    table_file_id: str | None
    origin_json: str | None
    priority: int
    paused_at: datetime | None
    errors_json: str | None
    lines: int
    lines_completed: int
    lines_failed: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    created_at: datetime
    in_progress_at: datetime | None
    expires_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None


class MovedBatch(NamedTuple):
    """A batch that has entered another state."""

    id: str
    tenant_id: str


class DueBatch(NamedTuple):
    """A batch that waits for a clerk, `is_overdue` when it has done so for long."""

    id: str
    status: BatchState
    is_overdue: bool


class RunningTotals(NamedTuple):
    """Sums over the shards of a batch so far."""

    batch_id: str
    lines_completed: int
    lines_failed: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


class OpenModel(NamedTuple):
    """A model that has lines of a batch to run."""

    batch_id: str
    model: str


class OpenWork(NamedTuple):
    """The lines without a result of a model, and the highest priority of their batches."""

    model: str
    lines: int
    priority: int


class ResultRow(NamedTuple):
    """A line that has ended: with an answer, or with a problem."""

    line: int
    id: str
    custom_id: str
    answer: str | None
    problem: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None


BATCH: Final = columns_of(Batch, BatchRow)
_PAGE_BYTES: Final = 16 << 20  # of answers, in a page of results


def insert_batch(**columns: Any) -> Query[BatchRow]:  # Any: the columns' own types
    """Insert a batch that waits for prepare."""
    file_name = select(File.filename).where(File.id == columns["input_file_id"]).scalar_subquery()
    return Query(insert(Batch).values(**columns, input_file_name=file_name).returning(*BATCH), BatchRow)


def find_batch(batch_id: str, tenant_id: str) -> Query[BatchRow]:
    """Find a batch of this tenant."""
    return Query(_FIND_BATCH, BatchRow, {"batch_id": batch_id, "tenant_id": tenant_id})


_FIND_BATCH: Final = select(*BATCH).where(Batch.id == bindparam("batch_id"), Batch.tenant_id == bindparam("tenant_id"))


def mapping_of(batch_id: str) -> Select[str | None]:
    """Return the mapping of a batch, which may be large, as JSON; None for one that was not mapped from a table."""
    return select(Batch.mapping_json).where(Batch.id == batch_id)


def find_batch_of_any_tenant(batch_id: str) -> Query[BatchRow]:
    """Find a batch by its id."""
    return Query(select(*BATCH).where(Batch.id == batch_id), BatchRow)


def running_totals(batch_ids: list[str]) -> Query[RunningTotals]:
    """Sum up the shards of each batch so far."""
    return Query(_RUNNING_TOTALS, RunningTotals, {"batch_ids": batch_ids})


_IS_OF_BATCHES: Final = Shard.batch_id.in_(bindparam("batch_ids", expanding=True))
_RUNNING_TOTALS: Final = (
    select(Shard.batch_id, *(total(getattr(Shard, name)).label(name) for name in RunningTotals._fields[1:]))
    .where(_IS_OF_BATCHES)
    .group_by(Shard.batch_id)
)


def open_models(batch_ids: list[str]) -> Query[OpenModel]:
    """List the models that have lines of these batches to run, by name."""
    return Query(_OPEN_MODELS, OpenModel, {"batch_ids": batch_ids})


_OPEN_MODELS: Final = (
    select(Shard.batch_id, Shard.model)
    .where(_IS_OF_BATCHES, Shard.state != ShardState.DONE)
    .distinct()
    .order_by(Shard.batch_id, Shard.model)
)


def open_work() -> Query[OpenWork]:
    """List the models that running batches of all tenants have lines for, the one whose batch began first in front."""
    is_open = (Shard.state != ShardState.DONE, Batch.status == BatchState.IN_PROGRESS, Batch.paused_at.is_(None))
    statement = (
        select(
            Shard.model,
            total(Shard.lines - Shard.lines_completed - Shard.lines_failed).label("lines"),
            func.max(Batch.priority).label("priority"),
        )
        .join(Batch, Batch.id == Shard.batch_id)
        .where(*is_open)
        .group_by(Shard.model)
        .order_by(func.min(Batch.in_progress_at), Shard.model)
    )
    return Query(statement, OpenWork)


def move(batch_id: str, to: BatchState, **columns: Any) -> Query[MovedBatch]:  # Any: the columns' own types
    """Enter a state from any state that may lead to it, and set `<state>_at`. No row: the batch is in none of them."""
    return Query(_move(batch_id, to, **columns), MovedBatch)


def start(
    batch_id: str, *, lines: int, lines_failed: int, model: str | None, queued_tokens: int = 0
) -> Query[MovedBatch]:
    """Let a batch with a valid file run; its window begins with its creation."""
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


def begin_finalizing(batch_id: str) -> Query[MovedBatch]:
    """Let a clerk write the files of a batch when all shards are done. No row: some are not, or it is past this point."""
    open_shard = exists().where(Shard.batch_id == batch_id, Shard.state != ShardState.DONE)
    change = _move(batch_id, BatchState.FINALIZING, outcome=BatchState.COMPLETED)
    return Query(change.where(Batch.status == BatchState.IN_PROGRESS, ~open_shard), MovedBatch)


_MAY_BE_OVER: Final = text(
    """
    SELECT status <> 'in_progress' OR NOT EXISTS (SELECT FROM shards WHERE batch_id = :batch_id AND state <> 'done')
    FROM batches WHERE id = :batch_id
    """
)


def may_be_over(batch_id: str) -> TextClause:
    """Has a batch left its running state, or no open shard? A cheap look before `begin_finalizing` at the end of each shard."""
    return _MAY_BE_OVER.bindparams(batch_id=batch_id)


def is_ready_to_finalize(batch_id: str) -> Select[bool]:
    """Is the batch finalizing or cancelling, with no lease on its shards? Then finalize may run."""
    held = exists().where(Shard.batch_id == batch_id, Shard.state == ShardState.RUNNING, Shard.lease_until > func.now())
    closing = exists().where(Batch.id == batch_id, Batch.status.in_((BatchState.FINALIZING, BatchState.CANCELLING)))
    return select(closing & ~held)


def expire_batches() -> ReturningUpdate[str]:
    """Begin to finalize batches at the end of their window."""
    return (
        update(Batch)
        .where(Batch.status == BatchState.IN_PROGRESS, Batch.expires_at < func.now())
        .values(status=BatchState.FINALIZING, outcome=BatchState.EXPIRED, finalizing_at=func.now())
        .returning(Batch.id)
    )


def batches_due(age: timedelta, overdue: timedelta, limit: int) -> Query[DueBatch]:
    """List batches that wait for a clerk, with a last ticket older than `age`, which is taken for lost.

    A batch is overdue when that step has been due for longer than `overdue`, however many tickets were sent.
    """
    due_at = func.coalesce(Batch.cancelling_at, Batch.finalizing_at, Batch.created_at)
    is_overdue = (Batch.status != BatchState.IN_PROGRESS) & (due_at < func.now() - overdue)
    open_shard = exists().where(Shard.batch_id == Batch.id, Shard.state != ShardState.DONE)
    needs_clerk = or_(
        Batch.status.in_((BatchState.VALIDATING, BatchState.FINALIZING, BatchState.CANCELLING)),
        (Batch.status == BatchState.IN_PROGRESS) & ~open_shard,
    )
    statement = (
        select(Batch.id, Batch.status, is_overdue.label("is_overdue"))
        .where(Batch.status.not_in(FINAL_BATCH_STATES), needs_clerk, Batch.dispatched_at < func.now() - age)
        .order_by(Batch.dispatched_at)
        .limit(limit)
    )
    return Query(statement, DueBatch)


def mark_batches_dispatched(batch_ids: list[str]) -> Update:
    """Record that another ticket is sent."""
    return update(Batch).where(Batch.id.in_(batch_ids)).values(dispatched_at=func.now())


def try_lock(batch_id: str) -> Select[bool]:
    """Lock a batch for one clerk until the transaction ends. An advisory lock, so that a cancel need not wait for it."""
    return select(func.pg_try_advisory_xact_lock(func.hashtextextended(batch_id, 0)))


def close_shards(batch_id: str) -> Update:
    """End all leases on a batch, so that its workers can write no more."""
    return (
        update(Shard)
        .where(Shard.batch_id == batch_id, Shard.state != ShardState.DONE)
        .values(state=ShardState.DONE, owner=None, lease_until=None, fence=Shard.fence + 1)
    )


def end_leftover_lines(batch_id: str, state: JobState, problem: str) -> Update:
    """End lines that did not run with their batch."""
    return (
        update(Job)
        .where(Job.batch_id == batch_id, Job.state == JobState.QUEUED)
        .values(state=state, problem=problem, finished_at=func.now(), finish_xact=this_transaction())
    )


def result_rows(batch_id: str, after_line: int, limit: int, *, page_bytes: int = _PAGE_BYTES) -> Query[ResultRow]:
    """List lines that have ended, in input order, a page at a time: no line comes after answers of `page_bytes` bytes.

    So a page of embeddings, of 500 lines of 2 MB, does not fill the memory; and it has at least one line. Postgres gets the
    size of an answer without reading it.
    """
    size = func.coalesce(func.octet_length(Job.answer), 0)
    bytes_before = func.sum(size).over(order_by=Job.line) - size
    page = (
        select(*columns_of(Job, ResultRow), bytes_before.label("bytes_before"))
        .where(Job.batch_id == batch_id, Job.line > after_line, Job.finished_at.is_not(None))
        .order_by(Job.line)
        .limit(limit)
        .subquery("page")
    )
    columns = (page.c[name] for name in ResultRow._fields)
    return Query(select(*columns).where(page.c.bytes_before < page_bytes).order_by(page.c.line), ResultRow)


def _move(batch_id: str, to: BatchState, **columns: Any) -> ReturningUpdate[str, str]:  # Any: the columns' own types
    came_from = tuple(source for source, moves in BATCH_MOVES.items() if to in moves)
    return (
        update(Batch)
        .where(Batch.id == batch_id, Batch.status.in_(came_from))
        .values(status=to, **{f"{to}_at": func.now()}, **columns)
        .returning(Batch.id, Batch.tenant_id)
    )
