"""Statements that delete what has ended long ago: batches with their lines, and single requests. Files have their own expiry.

Each deletes so little that others hardly wait for it. An id begins with the time at which it was made, and what ended before a
moment was made before it, so the primary keys lead to the oldest rows, and no index is needed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Delete, Select, and_, delete, exists, func, select
from sqlalchemy.orm import aliased

from core import ids
from core.states import FINAL_BATCH_STATES, FINAL_JOB_STATES
from db.query import Query
from db.tables import Batch, Job, Response, StoredChat


class OldRequest(NamedTuple):
    """A single request that was made before a moment; one that is kept by `store`, or has not ended for long, stays."""

    id: str
    is_removable: bool


def moment_before(age: timedelta) -> Select[datetime]:
    """Return the moment that long ago, by the clock of the database."""
    return select(func.now() - age)


def oldest_batch(ended_before: datetime) -> Select[str]:
    """Return the oldest batch that ended before a moment; one that was retried stays for as long as its retries."""
    retry = aliased(Batch, name="retry")
    ended_at = func.coalesce(Batch.completed_at, Batch.failed_at, Batch.expired_at, Batch.cancelled_at)
    return (
        select(Batch.id)
        .where(
            Batch.id < ids.first_id(ids.BATCH, ended_before),
            Batch.status.in_(FINAL_BATCH_STATES),
            ended_at < ended_before,
            ~exists().where(retry.parent_batch_id == Batch.id),
        )
        .order_by(Batch.id)
        .limit(1)
    )


def delete_lines(batch_id: str, limit: int) -> Delete:
    """Delete the first lines of a batch."""
    of_batch = Job.batch_id == batch_id
    page = select(Job.line).where(of_batch).order_by(Job.line).limit(limit).subquery("page")
    return delete(Job).where(of_batch, Job.line <= select(func.max(page.c.line)).scalar_subquery())


def delete_batch(batch_id: str) -> Delete:
    """Delete a batch, and its shards, after its lines."""
    return delete(Batch).where(Batch.id == batch_id)


def old_requests(after: str, prefix: str, ended_before: datetime, limit: int) -> Query[OldRequest]:
    """List a page of single requests behind an id, made before a moment, whose ids have this prefix."""
    is_removable = and_(
        Job.state.in_(FINAL_JOB_STATES),
        Job.finished_at < ended_before,
        ~exists().where(Response.job_id == Job.id),
        ~exists().where(StoredChat.job_id == Job.id),
    )
    statement = (
        select(Job.id, is_removable.label("is_removable"))
        .where(Job.id > after, Job.id < ids.first_id(prefix, ended_before), Job.batch_id.is_(None))
        .order_by(Job.id)
        .limit(limit)
    )
    return Query(statement, OldRequest)


def delete_requests(job_ids: list[str]) -> Delete:
    """Delete single requests that have ended."""
    return delete(Job).where(Job.id.in_(job_ids), Job.state.in_(FINAL_JOB_STATES))
