"""Statements on single jobs: each move of a request from queued to its end. The clock is the database's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Select,
    TextClause,
    Update,
    and_,
    exists,
    func,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from core.schemas.endpoints import CHAT_ENDPOINT
from core.states import JobState
from db.query import DriverQuery, Query, columns_of
from db.response_events import EndedJob, with_response_events
from db.tables import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The origin of an answer: the engine's build, and hashes of the weights, the chat template and the model file.

    `model_parameters` is JSON: the parameters that the model file sets where a body has none.
    """

    build: str
    model_hash: str | None
    settings_hash: str | None = None
    template_hash: str | None = None
    model_parameters: str | None = None


class JobRow(NamedTuple):
    """A job; `batch_id`, `line` and `custom_id` are set for a line of a batch."""

    id: str
    batch_id: str | None
    line: int | None
    custom_id: str | None
    model: str
    endpoint: str
    state: JobState
    attempt: int
    cancel_requested: bool
    body: str
    answer: str | None
    problem: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    engine_build: str | None
    model_hash: str | None
    settings_hash: str | None
    template_hash: str | None
    model_parameters: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class ClaimedJob(NamedTuple):
    """A job under a lease; `has_quarantined`: requests of its tenant to its model are quarantined."""

    id: str
    tenant_id: str
    model: str
    endpoint: str
    body: str
    attempt: int
    fence: int
    key_id: str | None
    origin_json: str | None
    has_quarantined: bool


class QueuedJob(NamedTuple):
    """A job to send a ticket for."""

    id: str
    model: str


class RenewedJob(NamedTuple):
    """A job with a renewed lease."""

    id: str
    fence: int
    cancel_requested: bool


JOB: Final = columns_of(Job, JobRow)
_QUEUED: Final = columns_of(Job, QueuedJob)


_INSERT_JOB: Final = """
    INSERT INTO jobs (id, tenant_id, model, body, key_id, endpoint, origin_json)
    VALUES (%(id)s, %(tenant_id)s, %(model)s, %(body)s, %(key_id)s, %(endpoint)s, %(origin_json)s)
    RETURNING id, model
"""


def insert_job(
    job_id: str,
    tenant_id: str,
    model: str,
    body: str,
    key_id: str | None = None,
    *,
    endpoint: str = CHAT_ENDPOINT,
    origin_json: str | None = None,
) -> DriverQuery[QueuedJob]:
    """Insert a queued job; its body is one of the endpoint's."""
    columns = {"id": job_id, "tenant_id": tenant_id, "model": model, "body": body, "key_id": key_id}
    return DriverQuery(_INSERT_JOB, QueuedJob, {**columns, "endpoint": endpoint, "origin_json": origin_json})


def find_job(job_id: str, tenant_id: str) -> Query[JobRow]:
    """Find a job of this tenant that is not a line of a batch."""
    statement = select(*JOB).where(Job.id == job_id, Job.tenant_id == tenant_id, Job.batch_id.is_(None))
    return Query(statement, JobRow)


_CLAIM_JOB: Final = """
    UPDATE jobs SET
        state = 'running', owner = %(owner)s, lease_until = now() + %(lease)s, fence = fence + 1, attempt = attempt + 1,
        started_at = COALESCE(started_at, now())
    WHERE id = %(id)s AND state = 'queued' AND (%(models)s::text[] IS NULL OR model = ANY(%(models)s::text[]))
    RETURNING id, tenant_id, model, endpoint, body, attempt, fence, key_id, origin_json, EXISTS (
        SELECT FROM quarantine WHERE quarantine.tenant_id = jobs.tenant_id AND quarantine.model = jobs.model
    ) AS has_quarantined
"""


def claim_job(
    job_id: str, owner: str, lease: timedelta, models: Collection[str] | None = None
) -> DriverQuery[ClaimedJob]:
    """Take a queued job, of one of these models. No row: another worker has it, it has ended, or its model is another one."""
    of_models = None if models is None else list(models)
    return DriverQuery(_CLAIM_JOB, ClaimedJob, {"id": job_id, "owner": owner, "lease": lease, "models": of_models})


def overdue_jobs(models: list[str] | None, age: timedelta, limit: int) -> Query[QueuedJob]:
    """List queued jobs of these models, or of all, with a last ticket older than `age`, which is taken for lost."""
    statement = (
        select(*_QUEUED)
        .where(
            true() if models is None else Job.model.in_(models),
            Job.state == JobState.QUEUED,
            Job.batch_id.is_(None),
            Job.dispatched_at < func.now() - age,
        )
        .order_by(Job.created_at)
        .limit(limit)
    )
    return Query(statement, QueuedJob)


def waiting_jobs(models: list[str], age: timedelta, limit: int) -> Select[str]:
    """List queued jobs that were created `age` ago, however many tickets were sent for them."""
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
    """Record that another ticket is sent."""
    return update(Job).where(Job.id.in_(job_ids), Job.state == JobState.QUEUED).values(dispatched_at=func.now())


def renew_jobs(held: Mapping[str, int], lease: timedelta) -> Query[RenewedJob]:
    """Renew leases on jobs by their fences; jobs without a row are lost."""
    statement = (
        update(Job)
        .where(tuple_(Job.id, Job.fence).in_(held.items()), Job.state == JobState.RUNNING)
        .values(lease_until=func.now() + lease)
        .returning(*columns_of(Job, RenewedJob))
    )
    return Query(statement, RenewedJob)


def end_leases(slot: str) -> ReturningUpdate[str]:
    """End the leases on jobs of processes that ended in this slot, and return the ids of the jobs."""
    held = and_(Job.state == JobState.RUNNING, Job.owner.startswith(slot, autoescape=True))
    return update(Job).where(held, Job.lease_until > func.now()).values(lease_until=func.now()).returning(Job.id)


def complete_job(
    job_id: str,
    fence: int,
    *,
    answer: str,
    tokens: tuple[int, int, int, int],
    provenance: Provenance,
    is_cut: bool = False,
) -> Query[EndedJob]:
    """Store the answer of a running job. No row: the lease is lost.

    `tokens`: prompt, completion, cached, reasoning. With `is_cut` the answer ends at its token limit or a filter, which makes a
    response incomplete.
    """
    prompt, completion, cached, reasoning = tokens
    end = _end(job_id, fence).values(
        state=JobState.COMPLETED,
        answer=answer,
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        reasoning_tokens=reasoning,
        engine_build=provenance.build,
        model_hash=provenance.model_hash,
        settings_hash=provenance.settings_hash,
        template_hash=provenance.template_hash,
        model_parameters=provenance.model_parameters,
    )
    return with_response_events(end, "response.incomplete" if is_cut else "response.completed")


def fail_job(job_id: str, fence: int, problem: str) -> Query[EndedJob]:
    """Store the problem of a running job. No row: the lease is lost."""
    return with_response_events(_end(job_id, fence).values(state=JobState.FAILED, problem=problem), "response.failed")


def end_cancelled_job(job_id: str, fence: int) -> Query[EndedJob]:
    """End a running job that was stopped on request. No row: the lease is lost."""
    return with_response_events(_end(job_id, fence).values(state=JobState.CANCELLED), "response.cancelled")


def has_ended(job_id: str, fence: int, state: JobState) -> Select[bool]:
    """Has a job ended in this state under this fence? For a writer that got no reply to its commit."""
    return select(exists().where(Job.id == job_id, Job.fence == fence, Job.state == state))


def _end(job_id: str, fence: int) -> Update:
    """Update a running job that has ended, under its fence."""
    return (
        update(Job)
        .where(Job.id == job_id, Job.fence == fence, Job.state == JobState.RUNNING)
        .values(owner=None, lease_until=None, finished_at=func.now())
    )


def cancel_queued_job(job_id: str) -> Query[EndedJob]:
    """End a queued job at once. No row: it runs, or has ended."""
    end = (
        update(Job)
        .where(Job.id == job_id, Job.state == JobState.QUEUED)
        .values(state=JobState.CANCELLED, cancel_requested=True, finished_at=func.now())
    )
    return with_response_events(end, "response.cancelled")


def request_cancel(job_id: str) -> Update:
    """Ask the worker of a running job to stop it; its next heartbeat reads this if the message by Redis is lost."""
    return update(Job).where(Job.id == job_id, Job.state == JobState.RUNNING).values(cancel_requested=True)


def release_job(job_id: str, fence: int) -> Query[QueuedJob]:
    """Queue a running job again, without counting the attempt: its worker shuts down. No row: the lease is lost."""
    statement = (
        update(Job)
        .where(Job.id == job_id, Job.fence == fence, Job.state == JobState.RUNNING)
        .values(state=JobState.QUEUED, owner=None, lease_until=None, attempt=Job.attempt - 1)
        .returning(*_QUEUED)
    )
    return Query(statement, QueuedJob)


def requeue_lost_jobs(max_attempts: int) -> Query[QueuedJob]:
    """Queue lost jobs again, unless they are to be cancelled or have had all their attempts."""
    statement = (
        update(Job)
        .where(_lost(), Job.attempt < max_attempts, Job.cancel_requested.is_(False))
        .values(state=JobState.QUEUED, owner=None, lease_until=None, dispatched_at=func.now())
        .returning(*_QUEUED)
    )
    return Query(statement, QueuedJob)


def fail_lost_jobs(max_attempts: int, problem: str) -> Query[EndedJob]:
    """Fail lost jobs that have had all their attempts."""
    end = (
        update(Job)
        .where(_lost(), Job.attempt >= max_attempts, Job.cancel_requested.is_(False))
        .values(state=JobState.FAILED, problem=problem, owner=None, lease_until=None, finished_at=func.now())
    )
    return with_response_events(end, "response.failed")


def cancel_lost_jobs() -> Query[EndedJob]:
    """Cancel lost jobs that were to be cancelled."""
    end = (
        update(Job)
        .where(_lost(), Job.cancel_requested.is_(True))
        .values(state=JobState.CANCELLED, owner=None, lease_until=None, finished_at=func.now())
    )
    return with_response_events(end, "response.cancelled")


def lost_jobs() -> Select[str]:
    """List the running jobs whose leases are over."""
    return select(Job.id).where(_lost())


def _lost() -> ColumnElement[bool]:
    """Is the lease of a running job over?"""
    return and_(Job.state == JobState.RUNNING, Job.lease_until < func.now())


_ADD_USAGE: Final = text(
    """
    INSERT INTO usage_daily AS today
        (tenant_id, model, day, key_id, requests, prompt_tokens, completion_tokens, cached_tokens)
    VALUES (:tenant_id, :model, CAST(now() AT TIME ZONE 'UTC' AS date), :key, :requests, :prompt, :completion, :cached)
    ON CONFLICT (tenant_id, model, day, key_id) DO UPDATE SET
        requests = today.requests + excluded.requests,
        prompt_tokens = today.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = today.completion_tokens + excluded.completion_tokens,
        cached_tokens = today.cached_tokens + excluded.cached_tokens
    """
)


def add_usage(
    tenant_id: str,
    model: str,
    *,
    key: str = "",
    requests: int,
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int,
) -> TextClause:
    """Raise today's usage of a key (empty: none). Always the last statement of its transaction: many lock this row."""
    return _ADD_USAGE.bindparams(
        tenant_id=tenant_id,
        model=model,
        key=key,
        requests=requests,
        prompt=prompt_tokens,
        completion=completion_tokens,
        cached=cached_tokens,
    )
