"""`/v1/jobs`: a chat request that is answered later; polled, or followed with `Last-Event-ID`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from functools import partial

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response

from api.access.scopes import require_scopes
from api.dependencies import AppState, CallerDep, StateDep, TenantDep
from api.http.event_stream import EventStream
from api.http.openapi import request_docs, response_docs
from api.http.sse import DONE, PING_WITH_IDS, error_event, numbered_events
from api.live.follower import Follower, FramesReceived, Idle, JobEnded, read_row
from api.live.submission import cancel, cancelled_problem, read_submission, submit
from api.services.key_ring import Caller
from api.writes.idempotency import create_once, digest_of_body
from core import ids
from core.api_keys import Scope
from core.errors import Problem, bad_request, not_found
from core.ids import is_id
from core.queue.events import EventKind
from core.schemas.chat import ChatRequest
from core.schemas.chunks import chunks_of
from core.schemas.objects import JobObject
from core.states import JobState
from db.jobs import JobRow, find_job

router = APIRouter(tags=["jobs"], dependencies=[require_scopes(Scope.INFERENCE)])


@router.post("/v1/jobs", status_code=202, openapi_extra=request_docs(ChatRequest))
async def create_job(request: Request, state: StateDep, tenant: TenantDep) -> JobObject:
    """Take a chat body and answer later; what was accepted survives anything."""
    submission = await read_submission(request, state, tenant)

    async def create(job_id: str) -> JobObject:
        await submit(state, replace(submission, job_id=job_id), durable=True)
        return await get_job(job_id, state, tenant)

    return await create_once(
        request,
        state,
        tenant,
        ids.CHAT,
        body_digest=lambda: digest_of_body(request),
        find=lambda job_id: get_job(job_id, state, tenant),
        create=create,
    )


@router.get("/v1/jobs/{job_id}")
async def get_job(job_id: str, state: StateDep, tenant: TenantDep) -> JobObject:
    """The job, with its answer or error once it has ended."""
    return to_job_object(await _find(state, job_id, tenant))


@router.post("/v1/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, state: StateDep, tenant: TenantDep) -> JobObject:
    """Stop it; a job that has ended stays as it is."""
    await _find(state, job_id, tenant)
    await cancel(state, job_id)
    return to_job_object(await _find(state, job_id, tenant))


@router.get("/v1/jobs/{job_id}/events", responses=response_docs(streams=True))
async def get_job_events(
    job_id: str, state: StateDep, tenant: TenantDep, caller: CallerDep, last_event_id: str | None = Header(None)
) -> Response:
    """Its frames as they come, numbered; a reader that comes back says the last number it saw."""
    job = await _find(state, job_id, tenant)
    if last_event_id is not None and not last_event_id.isdigit():
        raise bad_request(
            "'Last-Event-ID' must be a number this stream sent.", code="invalid_value", param="Last-Event-ID"
        )
    next_seq = int(last_event_id[:9]) + 1 if last_event_id else 0
    options = json.loads(job.body).get("stream_options") or {}
    include_usage = bool(options.get("include_usage"))
    return EventStream(_events(state, job_id, caller, next_seq, include_usage=include_usage))


async def _events(
    state: AppState, job_id: str, caller: Caller, next_seq: int, *, include_usage: bool
) -> AsyncIterator[bytes]:
    """No row is kept while the job is waited for: with what SQLAlchemy hangs on it, one is 10 KB."""
    async with state.relay.follow(job_id, caller.key_id) as subscription:
        follower = Follower(state, subscription, partial(find_job, job_id, caller.tenant), next_seq=next_seq)
        async for item in follower.items(from_replay=True):
            match item:
                case FramesReceived(seq=seq, frames=frames):
                    yield numbered_events(seq, frames)
                case Idle():
                    yield PING_WITH_IDS
                case JobEnded(kind=EventKind.DONE):
                    if follower.next_seq == 0:
                        row = item.row or await read_row(state, job_id, caller.tenant)
                        assert row is not None, "a job that is done has a row"
                        yield numbered_events(0, chunks_of(str(row.answer), include_usage=include_usage))
                    yield DONE
                case JobEnded(problem=problem):
                    yield error_event(problem or cancelled_problem())


async def _find(state: AppState, job_id: str, tenant: str) -> JobRow:
    row = await read_row(state, job_id, tenant) if is_id(job_id) else None
    if row is None:
        raise not_found(f"There is no job '{job_id[:64]}'.", param="job_id")
    return row


def to_job_object(row: JobRow) -> JobObject:
    """The row as clients see it."""
    problem = Problem.from_json(row.problem).envelope()["error"] if row.problem else None
    return JobObject(
        id=row.id,
        status="cancelling" if row.cancel_requested and row.state == JobState.RUNNING else str(row.state),
        model=row.model,
        created_at=_seconds(row.created_at) or 0,
        started_at=_seconds(row.started_at),
        finished_at=_seconds(row.finished_at),
        attempt=row.attempt,
        response=json.loads(row.answer) if row.answer else None,
        error=problem,
    )


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
