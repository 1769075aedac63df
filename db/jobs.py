"""Statements on single jobs: a chat request's way from queued to its end. The clock is the database's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Insert, Select, Update, and_, exists, func, insert, select, tuple_, update
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import insert as postgres_insert

from core.schemas.endpoints import CHAT_ENDPOINT
from core.states import JobState
from db.quarantine import has_quarantined
from db.response_events import with_response_events
from db.tables import Job, UsageDaily


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What computed an answer: the engine's build and the hashes of the weights, the template and what the model file says.

    `model_parameters` is the part of the model file that fills in what a body leaves out, as JSON.
    """

    build: str
    model_hash: str | None
    settings_hash: str | None = None
    template_hash: str | None = None
    model_parameters: str | None = None


def insert_job(
    job_id: str, tenant_id: str, model: str, body: str, key_id: str | None = None, *, endpoint: str = CHAT_ENDPOINT
) -> Insert:
    """A queued job; its body is one of the endpoint's."""
    return insert(Job).values(id=job_id, tenant_id=tenant_id, model=model, body=body, key_id=key_id, endpoint=endpoint)


def find_job(job_id: str, tenant_id: str) -> Select[Job]:
    """A chat job of this tenant; batch lines are not found here."""
    return select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id, Job.batch_id.is_(None))


def claim_job(job_id: str, owner: str, lease: timedelta) -> Any:  # Any: ReturningUpdate of the columns a worker needs
    """Take a queued job, or return no row: somebody has it, or it has ended."""
    return (
        update(Job)
        .where(Job.id == job_id, Job.state == JobState.QUEUED)
        .values(
            state=JobState.RUNNING,
            owner=owner,
            lease_until=func.now() + lease,
            fence=Job.fence + 1,
            attempt=Job.attempt + 1,
            started_at=func.coalesce(Job.started_at, func.now()),
        )
        .returning(
            Job.id,
            Job.tenant_id,
            Job.model,
            Job.endpoint,
            Job.body,
            Job.attempt,
            Job.fence,
            Job.created_at,
            Job.key_id,
            has_quarantined(Job.tenant_id, Job.model),
        )
    )


def overdue_jobs(models: list[str], age: timedelta, limit: int) -> Select[str, str]:
    """Queued chat jobs (id, model) whose ticket must have been lost."""
    return (
        select(Job.id, Job.model)
        .where(
            Job.model.in_(models),
            Job.state == JobState.QUEUED,
            Job.batch_id.is_(None),
            Job.dispatched_at < func.now() - age,
        )
        .order_by(Job.created_at)
        .limit(limit)
    )


def waiting_jobs(models: list[str], age: timedelta, limit: int) -> Select[str]:
    """Queued chat jobs that are so old, however many tickets they had."""
    return (
        select(Job.id)
        .where(
            Job.model.in_(models),
            Job.state == JobState.QUEUED,
            Job.batch_id.is_(None),
            Job.created_at < func.now() - age,
        )
        .order_by(Job.created_at)
        .limit(limit)
    )


def mark_jobs_dispatched(job_ids: list[str]) -> Update:
    """Another ticket is on its way."""
    return update(Job).where(Job.id.in_(job_ids), Job.state == JobState.QUEUED).values(dispatched_at=func.now())


def renew_jobs(held: Mapping[str, int], lease: timedelta) -> Any:  # Any: ReturningUpdate
    """Renew leases on jobs, by their fences; the rows say which are still held and which shall stop."""
    return (
        update(Job)
        .where(tuple_(Job.id, Job.fence).in_(held.items()), Job.state == JobState.RUNNING)
        .values(lease_until=func.now() + lease)
        .returning(Job.id, Job.fence, Job.cancel_requested)
    )


def end_leases(slot: str) -> Any:  # Any: ReturningUpdate
    """Whoever of this slot holds a job is dead: its leases are over. The rows: which those were."""
    held = and_(Job.state == JobState.RUNNING, Job.owner.startswith(slot, autoescape=True))
    return update(Job).where(held, Job.lease_until > func.now()).values(lease_until=func.now()).returning(Job.id)


def complete_job(
    job_id: str,
    fence: int,
    *,
    answer: str,
    tokens: tuple[int, int, int, int],
    made_by: Provenance,
    is_cut: bool = False,
) -> Any:  # Any: as `with_response_events` has it
    """The answer of a running job, if its lease is still ours. `tokens`: prompt, completion, cached, reasoning.

    `is_cut` says that the answer stops before its end, which makes a response incomplete.
    """
    prompt, completion, cached, reasoning = tokens
    end = _end(job_id, fence).values(
        state=JobState.COMPLETED,
        answer=answer,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        engine_build=made_by.build,
        model_hash=made_by.model_hash,
        settings_hash=made_by.settings_hash,
        template_hash=made_by.template_hash,
        model_parameters=made_by.model_parameters,
    )
    return with_response_events(end, "response.incomplete" if is_cut else "response.completed")


def fail_job(job_id: str, fence: int, problem: str) -> Any:  # Any: as `with_response_events` has it
    """The stored problem of a running job, if its lease is still ours."""
    return with_response_events(_end(job_id, fence).values(state=JobState.FAILED, problem=problem), "response.failed")


def end_cancelled_job(job_id: str, fence: int) -> Any:  # Any: as `with_response_events` has it
    """A running job stopped as it was asked to."""
    return with_response_events(_end(job_id, fence).values(state=JobState.CANCELLED), "response.cancelled")


def has_ended(job_id: str, fence: int, state: JobState) -> Select[bool]:
    """Did a job end so, under this fence? For whoever wrote that and got no reply."""
    return select(exists().where(Job.id == job_id, Job.fence == fence, Job.state == state))


def _end(job_id: str, fence: int) -> Update:
    """Before its values."""
    return (
        update(Job)
        .where(Job.id == job_id, Job.fence == fence, Job.state == JobState.RUNNING)
        .values(owner=None, lease_until=None, finished_at=func.now())
    )


def cancel_queued_job(job_id: str) -> Any:  # Any: as `with_response_events` has it
    """A job nobody has begun ends at once."""
    end = (
        update(Job)
        .where(Job.id == job_id, Job.state == JobState.QUEUED)
        .values(state=JobState.CANCELLED, cancel_requested=True, finished_at=func.now())
    )
    return with_response_events(end, "response.cancelled")


def request_cancel(job_id: str) -> Update:
    """Ask the worker that runs it; it sees this with its next heartbeat if the hint by Redis is lost."""
    return update(Job).where(Job.id == job_id, Job.state == JobState.RUNNING).values(cancel_requested=True)


def release_job(job_id: str, fence: int) -> Any:  # Any: ReturningUpdate
    """Give a running job back unfinished, its attempt unspent: the worker is leaving."""
    return (
        update(Job)
        .where(Job.id == job_id, Job.fence == fence, Job.state == JobState.RUNNING)
        .values(state=JobState.QUEUED, owner=None, lease_until=None, attempt=Job.attempt - 1)
        .returning(Job.id, Job.model)
    )


def requeue_lost_jobs(max_attempts: int) -> Any:  # Any: ReturningUpdate
    """Running jobs whose worker has gone silent wait again, unless they were asked to stop or have tried enough."""
    return (
        update(Job)
        .where(_lost(), Job.attempt < max_attempts, Job.cancel_requested.is_(False))
        .values(state=JobState.QUEUED, owner=None, lease_until=None, dispatched_at=func.now())
        .returning(Job.id, Job.model)
    )


def fail_lost_jobs(max_attempts: int, problem: str) -> Any:  # Any: as `with_response_events` has it
    """Running jobs whose worker has gone silent too often end as failed."""
    end = (
        update(Job)
        .where(_lost(), Job.attempt >= max_attempts, Job.cancel_requested.is_(False))
        .values(state=JobState.FAILED, problem=problem, owner=None, lease_until=None, finished_at=func.now())
    )
    return with_response_events(end, "response.failed")


def cancel_lost_jobs() -> Any:  # Any: as `with_response_events` has it
    """Running jobs whose worker has gone silent after they were asked to stop."""
    end = (
        update(Job)
        .where(_lost(), Job.cancel_requested.is_(True))
        .values(state=JobState.CANCELLED, owner=None, lease_until=None, finished_at=func.now())
    )
    return with_response_events(end, "response.cancelled")


def _lost() -> Any:  # Any: a SQL condition
    return and_(Job.state == JobState.RUNNING, Job.lease_until < func.now())


def add_usage(
    tenant_id: str,
    model: str,
    *,
    key: str = "",
    requests: int,
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int,
) -> PostgresInsert:
    """Raise today's usage of a key (empty: none). Always the last statement of its transaction: many meet on this row."""
    counts = {
        "requests": requests,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cached_tokens": cached_tokens,
    }
    today = func.timezone("UTC", func.now()).cast(UsageDaily.day.type)
    new = postgres_insert(UsageDaily).values(tenant_id=tenant_id, model=model, day=today, key_id=key, **counts)
    return new.on_conflict_do_update(
        index_elements=[UsageDaily.tenant_id, UsageDaily.model, UsageDaily.day, UsageDaily.key_id],
        set_={name: UsageDaily.__table__.c[name] + new.excluded[name] for name in counts},
    )
