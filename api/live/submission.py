"""Making and cancelling jobs: a row, then a ticket. Shared by every endpoint that runs a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic_core
from fastapi import Request
from sqlalchemy import Insert

from api.access.admission import admit, find_model
from api.dependencies import AppState, caller_of
from api.http.json_body import read_json
from api.services.key_ring import Caller
from core import ids
from core.errors import Problem
from core.failpoints import Point, failpoint
from core.model_files import ModelConfig
from core.schemas.base import parse_body
from core.schemas.endpoints import CHAT_ENDPOINT, ENDPOINTS
from core.schemas.generation import ModelRequest
from db import jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A checked request, not yet a job; `asked` is its body, parsed. `rows` are inserted with it, all or none, and then are
    to last.
    """

    job_id: str
    tenant: str
    caller: Caller
    endpoint: str
    asked: ModelRequest
    model: ModelConfig
    body: Any  # Any: the client's JSON, stored as it came
    rows: tuple[Insert, ...] = ()


async def read_submission(request: Request, state: AppState, tenant: str, endpoint: str = CHAT_ENDPOINT) -> Submission:
    """Read and check a body of an endpoint; raises the 4xx it deserves."""
    return await submission_of(request, await read_json(request), state, tenant, endpoint)


async def submission_of(
    request: Request,
    body: Any,  # Any: parsed JSON
    state: AppState,
    tenant: str,
    endpoint: str = CHAT_ENDPOINT,
) -> Submission:
    """Check a body that a request means; raises the 4xx it deserves."""
    row = ENDPOINTS[endpoint]
    asked = parse_body(row.body, body)
    caller = caller_of(request)
    model = find_model(state, caller, asked.model)
    row.check_model(model)
    longest = asked.max_answer_tokens or model.parameters.max_tokens or 0
    num_bytes = len(await request.body())
    await admit(request, state, caller, num_bytes=num_bytes, num_answer_tokens=longest * asked.num_answers)
    return Submission(
        job_id=ids.new_id(row.id_prefix),
        tenant=tenant,
        caller=caller,
        endpoint=endpoint,
        asked=asked,
        model=model,
        body=body,
    )


async def submit(state: AppState, submission: Submission, *, durable: bool) -> bool:
    """Insert the job and send its ticket; False when the broker did not take it.

    A job somebody waits for may be lost in a power cut, as its connection is; one that is answered later may not.
    """
    body = pydantic_core.to_json(submission.body).decode()
    insert = jobs.insert_job(
        submission.job_id,
        submission.tenant,
        submission.model.name,
        body,
        submission.caller.key_id,
        endpoint=submission.endpoint,
    )
    async with (state.database if durable or submission.rows else state.async_commit).begin() as connection:
        await connection.execute(insert)
        for row in submission.rows:
            await connection.execute(row)
    failpoint(Point.JOB_COMMITTED)
    tickets = state.sender.tickets
    is_sent = await state.sender.send(lambda: tickets.run_chat(submission.job_id, submission.model.name))
    failpoint(Point.JOB_TICKETED)
    return is_sent


async def cancel(state: AppState, job_id: str) -> None:
    """End a waiting job, or ask its worker to stop; harmless for one that has ended."""
    async with state.database.begin() as connection:
        ended = await jobs.cancel_queued_job(job_id).async_fetch_optional(connection)
        if ended is None:
            await connection.execute(jobs.request_cancel(job_id))
    failpoint(Point.JOB_CANCELLED)
    if ended is not None and ended.has_events:  # a webhook wants to know
        await state.sender.send(lambda: state.sender.tickets.deliver(job_id))
    await state.relay.send_cancel(job_id)


def cancelled_problem() -> Problem:
    """What a reader is told of a job that was cancelled elsewhere."""
    return Problem(status=400, message="This request was cancelled.", code="cancelled")
