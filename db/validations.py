"""Statements on validations, and on what recent batches say about the next one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Delete, Insert, Select, Update, delete, func, insert, or_, select, update

from core.states import BatchState, ShardState
from db.tables import Batch, Shard, Validation

_RECENT: Final = 20
_IS_OPEN: Final = Validation.report.is_(None) & Validation.failure.is_(None)
_IS_FREE: Final = or_(Validation.claimed_until.is_(None), Validation.claimed_until < func.now())


def insert_validation(**columns: Any) -> Insert:  # Any: the columns' own types
    """A question that waits for a clerk."""
    return insert(Validation).values(**columns)


def claim_question(validation_id: str, lease: timedelta) -> Any:  # Any: ReturningUpdate
    """Take a question that nobody has answered or is at; returns its file and endpoint, or no row."""
    return (
        update(Validation)
        .where(Validation.id == validation_id, _IS_OPEN, _IS_FREE)
        .values(claimed_until=func.now() + lease)
        .returning(Validation.file_id, Validation.endpoint)
    )


def renew_claim(validation_id: str, lease: timedelta) -> Any:  # Any: ReturningUpdate
    """Go on holding it; no row when nobody asks any more."""
    return (
        update(Validation)
        .where(Validation.id == validation_id, _IS_OPEN)
        .values(claimed_until=func.now() + lease)
        .returning(Validation.id)
    )


def waiting(tenant_id: str) -> Select[int]:
    """How many questions of the tenant nobody has answered."""
    return select(func.count()).where(Validation.tenant_id == tenant_id, _IS_OPEN)


def unclaimed(age: timedelta, limit: int) -> Select[str]:
    """Questions that nobody has answered for so long, and nobody is at."""
    return (
        select(Validation.id)
        .where(_IS_OPEN, _IS_FREE, Validation.created_at < func.now() - age)
        .order_by(Validation.created_at)
        .limit(limit)
    )


def answer(validation_id: str, *, report: str | None, failure: str | None) -> Update:
    """The first answer stays. Whoever asked may have left meanwhile: then there is no row."""
    return update(Validation).where(Validation.id == validation_id, _IS_OPEN).values(report=report, failure=failure)


def find_answer(validation_id: str) -> Select[str | None, str | None]:
    """Report and failure; both None while nothing is known."""
    return select(Validation.report, Validation.failure).where(Validation.id == validation_id)


def delete_validation(validation_id: str) -> Delete:
    """Whoever asked has the answer, or has left."""
    return delete(Validation).where(Validation.id == validation_id)


def delete_old_validations(age: timedelta) -> Delete:
    """Those whose api process died before it could."""
    return delete(Validation).where(Validation.created_at < func.now() - age)


def recent_work(model: str) -> Select[int, int, int, int, float]:
    """Of the model's last completed batches: how many, lines, prompt and completion tokens, seconds they ran together."""
    recent = (
        select(
            Batch.lines_completed,
            Batch.prompt_tokens,
            Batch.completion_tokens,
            func.extract("epoch", Batch.finalizing_at - Batch.in_progress_at).label("seconds"),
        )
        .where(Batch.model == model, Batch.status == BatchState.COMPLETED, Batch.lines_completed > 0)
        .order_by(Batch.id.desc())
        .limit(_RECENT)
        .subquery()
    )
    columns = recent.c
    sums = (columns.lines_completed, columns.prompt_tokens, columns.completion_tokens, columns.seconds)
    return select(func.count(), *(func.coalesce(func.sum(column), 0) for column in sums)).select_from(recent)


def queued_lines(model: str) -> Select[int]:
    """Lines of the model that stand before a new batch's: those of every batch that runs."""
    left = func.sum(Shard.lines - Shard.lines_completed - Shard.lines_failed)
    return select(func.coalesce(left, 0)).where(Shard.model == model, Shard.state != ShardState.DONE)
