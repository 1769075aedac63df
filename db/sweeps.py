"""The poll of the clerks: which parts of a sweep have anything to do. The clock is the database's.

At rest a sweep is this one statement; its conditions are those of the statements that a part executes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Delete, Executable, Select, Update, or_, select

from db import (
    batches,
    files,
    idempotency,
    jobs,
    missing_models,
    model_requests,
    quarantine,
    uploads,
    validations,
    workers,
)
from db.query import Query


class DueParts(NamedTuple):
    """The parts of a sweep that have something to do. `models`: lines or other jobs wait for a model."""

    batches: bool
    validations: bool
    jobs: bool
    models: bool
    quarantine: bool
    rows: bool


def due_parts(
    *,
    ticket_age: timedelta,
    idempotency_age: timedelta,
    quarantine_age: timedelta,
    crash_age: timedelta,
    file_age: timedelta,
) -> Query[DueParts]:
    """Find the parts of a sweep that have something to do. Build it once: it is long."""
    statement = select(
        _finds(batches.expire_batches(), batches.batches_due(ticket_age, ticket_age, 1).statement).label("batches"),
        _finds(validations.unclaimed(ticket_age, 1)).label("validations"),
        _finds(jobs.lost_jobs(), jobs.overdue_jobs(None, ticket_age, 1).statement).label("jobs"),
        _finds(missing_models.models_with_waiting_work()).label("models"),
        _finds(quarantine.delete_old_entries(quarantine_age), quarantine.delete_engine_crashes(crash_age)).label(
            "quarantine"
        ),
        _finds(
            idempotency.delete_old_keys(idempotency_age),
            workers.delete_silent_workers(),
            model_requests.delete_old_requests(),
            files.hide_expired_files(),
            files.removable_files(1),
            uploads.expire_uploads(),
            uploads.removable_parts(1),
            uploads.delete_old_uploads(file_age),
        ).label("rows"),
    )
    return Query(statement, DueParts)


def _finds(*statements: Executable) -> ColumnElement[bool]:
    """Would any of these statements return, change or delete a row?"""
    return or_(*(_as_select(statement).exists() for statement in statements))


def _as_select(statement: Executable) -> Select[object]:
    if isinstance(statement, Update | Delete):
        assert statement.whereclause is not None, "a sweep never changes a whole table"
        return select(1).select_from(statement.table).where(statement.whereclause)
    assert isinstance(statement, Select)
    return statement.order_by(None).limit(None)
