"""Statements on kept responses. What became of one is in its job's row."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Delete, Insert, Select, delete, insert, literal, select

from db.tables import Job, Response

MAX_TURNS: Final = 1024


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
    """A response, in the transaction that inserts its job."""
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


def find_response(response_id: str, tenant_id: str) -> Select[*tuple[Any, ...]]:  # Any: the columns named here
    """A response of this tenant, with how its job stands."""
    return (
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


def conversation(response_id: str, tenant_id: str) -> Select[*tuple[Any, ...]]:  # Any: the columns named here
    """A response and all that it goes on from, the oldest first: (id, previous_id, input_items, answer)."""
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
    return (
        select(turns.c.id, turns.c.previous_id, turns.c.input_items, Job.answer)
        .join(Job, Job.id == turns.c.job_id)
        .order_by(turns.c.age.desc())
    )


def delete_response(response_id: str, tenant_id: str) -> Delete:
    """Forget a response with its job, which holds what was asked and answered. A worker that has it finds no row to end."""
    kept = select(Response.job_id).where(Response.id == response_id, Response.tenant_id == tenant_id)
    return delete(Job).where(Job.id.in_(kept))
