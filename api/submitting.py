"""Making and cancelling jobs: a row, then a ticket. Shared by chat completions and jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic_core
from fastapi import Request
from sqlalchemy import Insert

from api.admission import admit, find_model
from api.auth import Caller
from api.bodies import read_json
from api.state import ApiState, caller_of
from core import ids
from core.errors import Problem
from core.models import ModelConfig
from core.wire.chat import ChatRequest
from core.wire.validation import parse_body
from db import jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A checked chat request, not yet a job. `rows` are inserted with it, all or none, and then are to last."""

    job_id: str
    tenant: str
    caller: Caller
    chat: ChatRequest
    model: ModelConfig
    body: Any  # Any: the client's JSON, stored as it came
    rows: tuple[Insert, ...] = ()


async def read_submission(request: Request, state: ApiState, tenant: str) -> Submission:
    """Read and check a chat body; raises the 4xx it deserves."""
    return await submission_of(request, await read_json(request), state, tenant)


async def submission_of(request: Request, body: Any, state: ApiState, tenant: str) -> Submission:  # Any: parsed JSON
    """Check a chat body that a request means; raises the 4xx it deserves."""
    chat = parse_body(ChatRequest, body)
    caller = caller_of(request)
    model = find_model(state, caller, chat.model)
    longest = chat.max_completion_tokens or chat.max_tokens or model.parameters.max_tokens or 0
    num_bytes = len(await request.body())
    await admit(request, state, caller, num_bytes=num_bytes, num_answer_tokens=longest * (chat.n or 1))
    return Submission(job_id=ids.new_id(ids.CHAT), tenant=tenant, caller=caller, chat=chat, model=model, body=body)


async def submit(state: ApiState, submission: Submission, *, durable: bool) -> bool:
    """Insert the job and send its ticket; False when the broker did not take it.

    A job somebody waits for may be lost in a power cut, as its connection is; one that is answered later may not.
    """
    body = pydantic_core.to_json(submission.body).decode()
    model, key_id = submission.model.name, submission.caller.key_id
    async with (state.database if durable or submission.rows else state.relaxed).begin() as connection:
        await connection.execute(jobs.insert_job(submission.job_id, submission.tenant, model, body, key_id))
        for row in submission.rows:
            await connection.execute(row)
    tickets = state.sender.tickets
    return await state.sender.send(lambda: tickets.run_chat(submission.job_id, submission.model.name))


async def cancel(state: ApiState, job_id: str) -> None:
    """End a waiting job, or ask its worker to stop; harmless for one that has ended."""
    async with state.database.begin() as connection:
        ended = (await connection.execute(jobs.cancel_queued_job(job_id))).one_or_none()
        if ended is None:
            await connection.execute(jobs.request_cancel(job_id))
    await state.relay.send_cancel(job_id)


def cancelled_problem() -> Problem:
    """What a reader is told of a job that was cancelled elsewhere."""
    return Problem(status=400, message="This request was cancelled.", code="cancelled")
