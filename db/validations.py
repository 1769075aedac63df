"""Statements on file validations, and on recent batches, from which the next one is estimated."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Delete, Float, Insert, Select, Update, cast, delete, func, insert, or_, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from core.states import BatchState, ShardState
from db.query import Query, columns_of, total
from db.tables import Batch, Shard, Validation

_RECENT: Final = 20
_IS_OPEN: Final = Validation.report.is_(None) & Validation.failure.is_(None)
_IS_FREE: Final = or_(Validation.claimed_until.is_(None), Validation.claimed_until < func.now())


class ClaimedValidation(NamedTuple):
    """The file to check, and the endpoint its lines are for (None: any)."""

    file_id: str
    endpoint: str | None


class ValidationResult(NamedTuple):
    """The JSON of a report, or why there is none; both None until a clerk has answered."""

    report: str | None
    failure: str | None


class WorkTotals(NamedTuple):
    """Sums over a model's last completed batches; `seconds` is the time they ran."""

    batches: int
    lines: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float


def insert_validation(**columns: Any) -> Insert:  # Any: the columns' own types
    """Insert a validation that waits for a clerk."""
    return insert(Validation).values(**columns)


def claim_validation(validation_id: str, lease: timedelta) -> Query[ClaimedValidation]:
    """Take an open validation. No row: it is claimed, answered or deleted."""
    statement = (
        update(Validation)
        .where(Validation.id == validation_id, _IS_OPEN, _IS_FREE)
        .values(claimed_until=func.now() + lease)
        .returning(*columns_of(Validation, ClaimedValidation))
    )
    return Query(statement, ClaimedValidation)


def renew_claim(validation_id: str, lease: timedelta) -> ReturningUpdate[str]:
    """Renew a claim. No row: its api request has ended and deleted it."""
    return (
        update(Validation)
        .where(Validation.id == validation_id, _IS_OPEN)
        .values(claimed_until=func.now() + lease)
        .returning(Validation.id)
    )


def count_open(tenant_id: str) -> Select[int]:
    """Count the tenant's validations without an answer."""
    return select(func.count()).where(Validation.tenant_id == tenant_id, _IS_OPEN)


def unclaimed(age: timedelta, limit: int) -> Select[str]:
    """List open validations older than `age` that no clerk holds, the oldest first."""
    return (
        select(Validation.id)
        .where(_IS_OPEN, _IS_FREE, Validation.created_at < func.now() - age)
        .order_by(Validation.created_at)
        .limit(limit)
    )


def set_result(validation_id: str, *, report: str | None, failure: str | None) -> Update:
    """Store the first result; changes nothing where there is one, or the validation is deleted."""
    return update(Validation).where(Validation.id == validation_id, _IS_OPEN).values(report=report, failure=failure)


def find_result(validation_id: str) -> Query[ValidationResult]:
    """Find the result of a validation."""
    statement = select(*columns_of(Validation, ValidationResult)).where(Validation.id == validation_id)
    return Query(statement, ValidationResult)


def delete_validation(validation_id: str) -> Delete:
    """Delete a validation after its result was read, or its reader has left."""
    return delete(Validation).where(Validation.id == validation_id)


def delete_old_validations(age: timedelta) -> Delete:
    """Delete validations that an api process left behind when it ended."""
    return delete(Validation).where(Validation.created_at < func.now() - age)


def recent_work(model: str) -> Query[WorkTotals]:
    """Sum up the model's last completed batches."""
    recent = (
        select(
            Batch.lines_completed,
            Batch.prompt_tokens,
            Batch.cached_tokens,
            Batch.completion_tokens,
            func.extract("epoch", Batch.finalizing_at - Batch.in_progress_at).label("seconds"),
        )
        .where(Batch.model == model, Batch.status == BatchState.COMPLETED, Batch.lines_completed > 0)
        .order_by(Batch.id.desc())
        .limit(_RECENT)
        .subquery()
    )
    statement = select(
        func.count().label("batches"),
        total(recent.c.lines_completed).label("lines"),
        total(recent.c.prompt_tokens).label("prompt_tokens"),
        total(recent.c.cached_tokens).label("cached_tokens"),
        total(recent.c.completion_tokens).label("completion_tokens"),
        cast(func.coalesce(func.sum(recent.c.seconds), 0), Float).label("seconds"),
    )
    return Query(statement.select_from(recent), WorkTotals)


def queued_lines(model: str) -> Select[int]:
    """Count the model's lines that are queued before those of a new batch: those of every batch that runs."""
    left = total(Shard.lines - Shard.lines_completed - Shard.lines_failed)
    return select(left).where(Shard.model == model, Shard.state != ShardState.DONE)
