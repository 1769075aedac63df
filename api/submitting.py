"""Making and cancelling jobs: a row, then a ticket. Shared by chat completions and jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic_core
from fastapi import Request
from sqlalchemy import Insert

from api.bodies import read_json
from api.state import ApiState
from core import ids
from core.errors import Problem, not_found
from core.models import ModelConfig
from core.wire.chat import ChatRequest
from core.wire.validation import parse_body
from db import jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A checked chat request, not yet a job. `rows` are inserted with it, all or none, and then are to last."""

    job_id: str
    tenant: str
    chat: ChatRequest
    model: ModelConfig
    body: Any  # Any: the client's JSON, stored as it came
    rows: tuple[Insert, ...] = ()


async def read_submission(request: Request, state: ApiState, tenant: str) -> Submission:
    """Read and check a chat body; raises the 4xx it deserves."""
    return submission_of(await read_json(request), state, tenant)


def submission_of(body: Any, state: ApiState, tenant: str) -> Submission:  # Any: parsed JSON
    """Check a chat body; raises the 4xx it deserves."""
    chat = parse_body(ChatRequest, body)
    model = state.catalog.get(chat.model)
    if model is None:
        served = ", ".join(state.catalog.names()) or "none"
        message = f"The model '{chat.model}' does not exist here. Served models: {served}."
        raise not_found(message, code="model_not_found", param="model")
    return Submission(job_id=ids.new_id(ids.CHAT), tenant=tenant, chat=chat, model=model, body=body)


async def submit(state: ApiState, submission: Submission, *, durable: bool) -> bool:
    """Insert the job and send its ticket; False when the broker did not take it.

    A job somebody waits for may be lost in a power cut, as its connection is; one that is answered later may not.
    """
    body = pydantic_core.to_json(submission.body).decode()
    async with (state.database if durable or submission.rows else state.relaxed).begin() as connection:
        await connection.execute(jobs.insert_job(submission.job_id, submission.tenant, submission.model.name, body))
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
