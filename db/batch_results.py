"""Statements on what a batch's lines have become: in the order in which they ended, and merged with their retries.

Transactions that end lines commit in any order, so neither a time nor a counter alone makes a cursor that misses nothing.
Here a line carries the number of the transaction that ended it, and a reader is shown only those below the oldest that is
still open: whatever appears later has a higher number. Once a batch has ended there is nothing to wait for.
The numbers are those of one database cluster: in a restored one, a reader of a batch that still runs begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ARRAY, BigInteger, Select, Text, any_, case, cast, func, literal, or_, select, true, tuple_

from core.states import JobState
from db.tables import Batch, Job


@dataclass(frozen=True, slots=True, order=True)
class EndedAt:
    """A place in the order in which lines ended: the transaction, then the line."""

    xact: int = 0
    line: int = 0


BEGINNING: Final = EndedAt()


def this_transaction() -> Any:  # Any: a SQL expression
    """The number of the current transaction, as `finish_xact` holds it."""
    return cast(cast(func.pg_current_xact_id(), Text), BigInteger)


def _oldest_open_transaction() -> Any:  # Any: a SQL expression
    return select(cast(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), Text), BigInteger)).scalar_subquery()


def _ended_after(batch_id: str, after: EndedAt, *, is_over: bool) -> Any:  # Any: a SQL condition
    ended = (Job.batch_id == batch_id) & Job.finished_at.is_not(None)
    ended &= tuple_(Job.finish_xact, Job.line) > tuple_(after.xact, after.line)
    return ended if is_over else ended & (Job.finish_xact < _oldest_open_transaction())


def ended_lines(batch_id: str, after: EndedAt, limit: int, *, is_over: bool) -> Any:  # Any: Select of seven columns
    """Lines in the order in which they ended: xact, line, id, custom_id, state, answer, problem."""
    return (
        select(Job.finish_xact, Job.line, Job.id, Job.custom_id, Job.state, Job.answer, Job.problem)
        .where(_ended_after(batch_id, after, is_over=is_over))
        .order_by(Job.finish_xact, Job.line)
        .limit(limit)
    )


def ended_marks(batch_id: str, after: EndedAt, limit: int, *, is_over: bool) -> Any:  # Any: Select of five columns
    """The same without the answers: xact, line, custom_id, state, problem."""
    return (
        select(Job.finish_xact, Job.line, Job.custom_id, Job.state, Job.problem)
        .where(_ended_after(batch_id, after, is_over=is_over))
        .order_by(Job.finish_xact, Job.line)
        .limit(limit)
    )


def family(batch_id: str) -> Select[str, str | None]:
    """The batch, those it was retried from, and those that retry it (id, parent); ids sort by age, so the oldest is first."""
    up = select(Batch.id, Batch.parent_batch_id).where(Batch.id == batch_id).cte("up", recursive=True)
    up = up.union(select(Batch.id, Batch.parent_batch_id).where(Batch.id == up.c.parent_batch_id))
    down = select(Batch.id, Batch.parent_batch_id).where(Batch.id == batch_id).cte("down", recursive=True)
    down = down.union(select(Batch.id, Batch.parent_batch_id).where(Batch.parent_batch_id == down.c.id))
    both = select(up.c.id, up.c.parent_batch_id).union(select(down.c.id, down.c.parent_batch_id)).subquery()
    return select(both.c.id, both.c.parent_batch_id).order_by(both.c.id)


def merged_lines(
    root_id: str, family_ids: list[str], after_line: int, limit: int
) -> Any:  # Any: Select of seven columns
    """Lines of the root in its order, each as its best end in the family; the columns are those of `ended_lines`.

    An answer is better than none, a later one better than an earlier one. A line that has not ended anywhere is left out.
    """
    page = (
        select(Job.line, Job.custom_id)
        .where(Job.batch_id == root_id, Job.line > after_line)
        .order_by(Job.line)
        .limit(limit)
        .subquery("page")
    )
    best = (
        select(Job.id, Job.state, Job.answer, Job.problem)
        .where(Job.batch_id.in_(family_ids), Job.custom_id == page.c.custom_id, Job.finished_at.is_not(None))
        .order_by(case((Job.state == JobState.COMPLETED, 0), else_=1), Job.batch_id.desc())
        .limit(1)
        .lateral("best")
    )
    return (
        select(
            literal(0).label("finish_xact"),
            page.c.line,
            best.c.id,
            page.c.custom_id,
            best.c.state,
            best.c.answer,
            best.c.problem,
        )
        .join(best, true())
        .order_by(page.c.line)
    )


def retry_lines(batch_id: str, custom_ids: list[str] | None, after_line: int, limit: int) -> Any:  # Any: Select
    """Lines to run again (line, custom_id, body), in input order: those named, else all that ended without an answer."""
    chosen = (
        Job.custom_id == any_(literal(custom_ids, ARRAY(Text)))
        if custom_ids is not None
        else or_(*(Job.state == state for state in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)))
    )
    return (
        select(Job.line, Job.custom_id, Job.body)
        .where(Job.batch_id == batch_id, chosen, Job.line > after_line)
        .order_by(Job.line)
        .limit(limit)
    )
