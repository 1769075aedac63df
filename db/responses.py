"""Statements on kept responses. The state and the answer of one are in its job's row."""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import Delete, Insert, delete, exists, insert, literal, select
from sqlalchemy.sql.dml import ReturningDelete

from core.schemas.endpoints import RESPONSES_ENDPOINT
from core.states import FINAL_BATCH_STATES, JobState
from db.query import Query, columns_of
from db.tables import Batch, Job, Response

MAX_TURNS: Final = 1024


class ResponseRow(NamedTuple):
    """A kept response, with the state of its job."""

    id: str
    job_id: str
    model: str
    request: str
    input_items: str
    created_at: datetime
    state: JobState
    cancel_requested: bool
    answer: str | None
    problem: str | None


class LineRow(NamedTuple):
    """A batch line of `/v1/responses` that has an answer, which is the response itself."""

    id: str
    model: str
    body: str
    answer: str
    created_at: datetime


class Turn(NamedTuple):
    """A response of a conversation, and the one it goes on from."""

    id: str
    previous_id: str | None
    input_items: str
    answer: str | None


def insert_response(
    *,
    response_id: str,
    tenant_id: str,
    job_id: str,
    previous_id: str | None,
    model: str,
    request: str,
    input_items: str,
    is_background: bool = False,
) -> Insert:
    """Insert a response; belongs in the transaction that inserts its job."""
    return insert(Response).values(
        id=response_id,
        tenant_id=tenant_id,
        job_id=job_id,
        previous_id=previous_id,
        model=model,
        request=request,
        input_items=input_items,
        is_background=is_background,
    )


def find_response(response_id: str, tenant_id: str) -> Query[ResponseRow]:
    """Find a response of this tenant."""
    statement = (
        select(
            Response.id,
            Response.job_id,
            Response.model,
            Response.request,
            Response.input_items,
            Response.created_at,
            Job.state,
            Job.cancel_requested,
            Job.answer,
            Job.problem,
        )
        .join(Job, Job.id == Response.job_id)
        .where(Response.id == response_id, Response.tenant_id == tenant_id)
    )
    return Query(statement, ResponseRow)


def find_line(line_id: str, tenant_id: str) -> Query[LineRow]:
    """Find an answered batch line of `/v1/responses` of this tenant."""
    statement = select(*columns_of(Job, LineRow)).where(
        Job.id == line_id,
        Job.tenant_id == tenant_id,
        Job.endpoint == RESPONSES_ENDPOINT,
        Job.batch_id.is_not(None),
        Job.state == JobState.COMPLETED,
    )
    return Query(statement, LineRow)


def conversation(response_id: str, tenant_id: str) -> Query[Turn]:
    """List a response and all that it goes on from, the oldest first."""
    columns = (Response.id, Response.previous_id, Response.job_id, Response.input_items)
    last = (
        select(*columns, literal(0).label("age"))
        .where(Response.id == response_id, Response.tenant_id == tenant_id)
        .cte("turns", recursive=True)
    )
    earlier = (
        select(*columns, last.c.age + 1)
        .join(last, Response.id == last.c.previous_id)
        .where(Response.tenant_id == tenant_id, last.c.age < MAX_TURNS)
    )
    turns = last.union_all(earlier)
    statement = (
        select(turns.c.id, turns.c.previous_id, turns.c.input_items, Job.answer)
        .join(Job, Job.id == turns.c.job_id)
        .order_by(turns.c.age.desc())
    )
    return Query(statement, Turn)


def delete_line(line_id: str, tenant_id: str) -> ReturningDelete[str]:
    """Delete a line whose batch has ended. No row: its batch still runs, and would miss it."""
    has_ended = exists().where(Batch.id == Job.batch_id, Batch.status.in_(FINAL_BATCH_STATES))
    return delete(Job).where(Job.id == line_id, Job.tenant_id == tenant_id, has_ended).returning(Job.id)


def delete_response(response_id: str, tenant_id: str) -> Delete:
    """Delete a response with its job, which holds its input and answer. A worker that runs the job finds no row to end."""
    kept = select(Response.job_id).where(Response.id == response_id, Response.tenant_id == tenant_id)
    return delete(Job).where(Job.id.in_(kept))
