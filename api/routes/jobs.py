"""`/v1/jobs`: a chat request that is answered later; polled, or followed with `Last-Event-ID`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import APIRouter, Header
from fastapi.responses import Response

from api.access.scopes import require_scopes
from api.dependencies import CallerDep, TenantDep
from api.http.event_stream import EventStream
from api.http.json_body import JsonDocument
from api.http.openapi import response_docs
from api.http.pagination import unix_seconds
from api.http.sse import DONE, PING_WITH_IDS, error_event, numbered_events
from api.live.follower import FramesReceived, Idle, JobEnded
from api.live.job_client import JobClient, JobClientDep
from api.live.submission import SubmissionBuilderDep, cancelled_problem, with_stored_chat
from api.services.key_ring import Caller
from api.writes.idempotency import CreateOnceDep
from core import ids
from core.api_keys import Scope
from core.errors import Problem, bad_request, not_found
from core.ids import is_id
from core.queue.events import EventKind
from core.schemas.chat import ChatRequest
from core.schemas.chunks import chunks_of
from core.schemas.objects import JobObject
from core.states import JobState
from db.jobs import JobRow

router = APIRouter(tags=["jobs"], dependencies=[require_scopes(Scope.INFERENCE)])


@router.post("/v1/jobs", status_code=202)
async def create_job(
    document: JsonDocument[ChatRequest],
    submissions: SubmissionBuilderDep,
    jobs: JobClientDep,
    tenant: TenantDep,
    create_once: CreateOnceDep,
) -> JobObject:
    """Accept a chat body and answer it later; an accepted job is durable."""
    submission = await submissions.build(document)

    async def create(job_id: str) -> JobObject:
        await jobs.submit(with_stored_chat(replace(submission, job_id=job_id)), durable=True)
        return await get_job(job_id, jobs, tenant)

    return await create_once(ids.CHAT, find=lambda job_id: get_job(job_id, jobs, tenant), create=create)


@router.get("/v1/jobs/{job_id}")
async def get_job(job_id: str, jobs: JobClientDep, tenant: TenantDep) -> JobObject:
    """The job, with its answer or error once it has ended."""
    return to_job_object(await _existing_job(jobs, job_id, tenant))


@router.post("/v1/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, jobs: JobClientDep, tenant: TenantDep) -> JobObject:
    """Cancel a job; one that has ended stays as it is."""
    await _existing_job(jobs, job_id, tenant)
    await jobs.cancel(job_id)
    return to_job_object(await _existing_job(jobs, job_id, tenant))


@router.get("/v1/jobs/{job_id}/events", response_class=Response, responses=response_docs(streams=True))
async def get_job_events(
    job_id: str, jobs: JobClientDep, tenant: TenantDep, caller: CallerDep, last_event_id: str | None = Header(None)
) -> Response:
    """The frames of a job as they arrive, numbered; a client that reconnects sends the last number it received."""
    job = await _existing_job(jobs, job_id, tenant)
    next_seq = seq_after(last_event_id)
    body = json.loads(job.body)
    include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    is_stream = bool(body.get("stream"))
    return EventStream(_events(jobs, job_id, caller, next_seq, is_stream=is_stream, include_usage=include_usage))


def seq_after(last_event_id: str | None) -> int:
    """The number of the first frame after the last one received; 0 without one."""
    if last_event_id is None:
        return 0
    if not last_event_id.isdecimal():  # `isdigit` is true for '²', which is no integer
        message = "'Last-Event-ID' must be a number that this stream has sent."
        raise bad_request(message, code="invalid_value", param="Last-Event-ID")
    return int(last_event_id[:9]) + 1


async def _events(
    jobs: JobClient, job_id: str, caller: Caller, next_seq: int, *, is_stream: bool, include_usage: bool
) -> AsyncIterator[bytes]:
    """No row is held while the job is waited for: with its SQLAlchemy overhead, one takes 10 KB.

    Only a body with `stream` has frames of a worker. Those of another body are cut from its answer, always in the same way, so
    that a client can read on after any of them.
    """
    async with jobs.relay.follow(job_id, caller.key_id) as subscription:
        follower = jobs.follower(subscription, caller.tenant, next_seq=next_seq if is_stream else 0)
        async for item in follower.updates(from_replay=True):
            match item:
                case FramesReceived(seq=seq, frames=frames):
                    yield numbered_events(seq, frames)
                case Idle():
                    yield PING_WITH_IDS
                case JobEnded(kind=EventKind.DONE):
                    if follower.next_seq == 0:
                        row = item.row or await jobs.find(job_id, caller.tenant)
                        assert row is not None, "a job that is done has a row"
                        first = 0 if is_stream else next_seq
                        chunks = chunks_of(str(row.answer), include_usage=include_usage)
                        yield numbered_events(first, chunks[first:])
                    yield DONE
                case JobEnded(problem=problem):
                    yield error_event(problem or cancelled_problem())


async def _existing_job(jobs: JobClient, job_id: str, tenant: str) -> JobRow:
    row = await jobs.find(job_id, tenant) if is_id(job_id) else None
    if row is None:
        raise not_found(f"There is no job '{job_id[:64]}'.", param="job_id")
    return row


def to_job_object(row: JobRow) -> JobObject:
    """The API object of a row."""
    problem = Problem.from_json(row.problem).envelope()["error"] if row.problem else None
    return JobObject(
        id=row.id,
        status="cancelling" if row.cancel_requested and row.state == JobState.RUNNING else str(row.state),
        model=row.model,
        created_at=unix_seconds(row.created_at) or 0,
        started_at=unix_seconds(row.started_at),
        finished_at=unix_seconds(row.finished_at),
        attempt=row.attempt,
        response=json.loads(row.answer) if row.answer else None,
        error=problem,
    )
