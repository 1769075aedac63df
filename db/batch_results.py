"""Statements on results of a batch's lines: in the order in which they ended, and merged with their retries.

Transactions that end lines commit in any order, so neither a time nor a counter alone makes a cursor that skips no line.
So a line carries the number of the transaction that ended it, and a reader gets only lines below the oldest transaction
that is still open: every line that appears later has a higher number. In a batch that has ended, all lines are shown.
The numbers are those of one database cluster: in a restored one, a reader of a batch that still runs starts again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    ScalarSelect,
    Select,
    Text,
    any_,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.orm import aliased

from core.schemas.batch import NO_BODY
from core.states import JobState
from db.query import Query, columns_of
from db.tables import Batch, Job


@dataclass(frozen=True, slots=True, order=True)
class EndedAt:
    """A position in the order in which lines ended: the transaction, then the line."""

    xact: int = 0
    line: int = 0


BEGINNING: Final = EndedAt()


class EndedLine(NamedTuple):
    """A line that has ended, with its result."""

    finish_xact: int
    line: int
    id: str
    custom_id: str
    state: JobState
    answer: str | None
    problem: str | None


class EndedMark(NamedTuple):
    """A line that has ended, without its answer."""

    finish_xact: int
    line: int
    custom_id: str
    state: JobState
    problem: str | None


class TableLine(NamedTuple):
    """A line with its best result so far; `body` is empty where it was not asked for."""

    line: int
    id: str
    custom_id: str
    state: JobState
    body: str
    answer: str | None
    problem: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class RetryLine(NamedTuple):
    """A line to run again."""

    line: int
    custom_id: str
    body: str


def this_transaction() -> ColumnElement[int]:
    """Return the number of the current transaction, as `finish_xact` holds it."""
    return cast(cast(func.pg_current_xact_id(), Text), BigInteger)


def _oldest_open_transaction() -> ScalarSelect[int]:
    return select(cast(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), Text), BigInteger)).scalar_subquery()


def _ended_after(batch_id: str, after: EndedAt, *, is_over: bool) -> ColumnElement[bool]:
    ended = (Job.batch_id == batch_id) & Job.finished_at.is_not(None)
    ended &= tuple_(Job.finish_xact, Job.line) > tuple_(after.xact, after.line)
    return ended if is_over else ended & (Job.finish_xact < _oldest_open_transaction())


def ended_lines(batch_id: str, after: EndedAt, limit: int, *, is_over: bool) -> Query[EndedLine]:
    """List lines in the order in which they ended; `is_over`: their batch has ended."""
    return Query(_ended(EndedLine, batch_id, after, limit, is_over=is_over), EndedLine)


def ended_marks(batch_id: str, after: EndedAt, limit: int, *, is_over: bool) -> Query[EndedMark]:
    """List the same lines without their answers."""
    return Query(_ended(EndedMark, batch_id, after, limit, is_over=is_over), EndedMark)


def _ended(
    row_class: type[NamedTuple], batch_id: str, after: EndedAt, limit: int, *, is_over: bool
) -> Select[*tuple[Any, ...]]:  # Any: the columns of the row class
    return (
        select(*columns_of(Job, row_class))
        .where(_ended_after(batch_id, after, is_over=is_over))
        .order_by(Job.finish_xact, Job.line)
        .limit(limit)
    )


def family(batch_id: str) -> Select[str]:
    """List the batch, those it was retried from, and those that retry it; ids sort by age, so the oldest is first."""
    up = select(Batch.id, Batch.parent_batch_id).where(Batch.id == batch_id).cte("up", recursive=True)
    up = up.union(select(Batch.id, Batch.parent_batch_id).where(Batch.id == up.c.parent_batch_id))
    down = select(Batch.id, Batch.parent_batch_id).where(Batch.id == batch_id).cte("down", recursive=True)
    down = down.union(select(Batch.id, Batch.parent_batch_id).where(Batch.parent_batch_id == down.c.id))
    both = select(up.c.id).union(select(down.c.id)).subquery()
    return select(both.c.id).order_by(both.c.id)


def merged_lines(root_id: str, family_ids: list[str], after_line: int, limit: int) -> Query[EndedLine]:
    """List lines of the root in its order, each with its best result in the family.

    An answer is better than none, and a later one than an earlier one. A line without a result in any batch is left out.
    """
    root = aliased(Job, name="root")
    best = (
        select(Job.id, Job.state, Job.answer, Job.problem)
        .where(Job.batch_id.in_(family_ids), Job.custom_id == root.custom_id, Job.finished_at.is_not(None))
        .order_by(case((Job.state == JobState.COMPLETED, 0), else_=1), Job.batch_id.desc())
        .limit(1)
        .lateral("best")
    )
    statement = (
        select(
            literal(0).label("finish_xact"),
            root.line,
            best.c.id,
            root.custom_id,
            best.c.state,
            best.c.answer,
            best.c.problem,
        )
        .join(best, true())
        .where(root.batch_id == root_id, root.line > after_line)
        .order_by(root.line)
        .limit(limit)
    )
    return Query(statement, EndedLine)


def table_lines(
    root_id: str, family_ids: list[str], after_line: int, limit: int, *, with_body: bool
) -> Query[TableLine]:
    """List all lines of the root in its order, each with its best result in the family; one without any is in its own state."""
    body = Job.body if with_body else literal("")
    page = (
        select(Job.line, Job.custom_id, body.label("body"))
        .where(Job.batch_id == root_id, Job.line > after_line)
        .order_by(Job.line)
        .limit(limit)
        .subquery("page")
    )
    rank = case((Job.state == JobState.COMPLETED, 0), (Job.finished_at.is_not(None), 1), else_=2)
    best = (
        select(Job.id, Job.state, Job.answer, Job.problem, Job.prompt_tokens, Job.completion_tokens)
        .where(Job.batch_id.in_(family_ids), Job.custom_id == page.c.custom_id)
        .order_by(rank, Job.batch_id.desc())
        .limit(1)
        .lateral("best")
    )
    columns = (getattr(page.c if name in page.c else best.c, name) for name in TableLine._fields)
    return Query(select(*columns).join(best, true()).order_by(page.c.line), TableLine)


def retry_lines(batch_id: str, custom_ids: list[str] | None, after_line: int, limit: int) -> Query[RetryLine]:
    """List lines to run again, in input order: those named, else all that ended without an answer; only those with a body."""
    chosen = (
        Job.custom_id == any_(literal(custom_ids, ARRAY(Text)))
        if custom_ids is not None
        else or_(*(Job.state == state for state in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)))
    )
    statement = (
        select(*columns_of(Job, RetryLine))
        .where(Job.batch_id == batch_id, chosen, Job.line > after_line, Job.body != NO_BODY)
        .order_by(Job.line)
        .limit(limit)
    )
    return Query(statement, RetryLine)
