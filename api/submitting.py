"""Making and cancelling jobs: a row, then a ticket. Shared by every endpoint that runs a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pydantic_core
from fastapi import Request

from api.bodies import read_json
from api.state import ApiState
from core import ids
from core.errors import Problem, not_found
from core.models import ModelConfig
from core.wire.endpoints import CHAT_ENDPOINT, ENDPOINTS
from core.wire.generation import Body
from core.wire.validation import parse_body
from db import jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A checked request, not yet a job; `asked` is its body, parsed."""

    job_id: str
    tenant: str
    endpoint: str
    asked: Body
    model: ModelConfig
    body: Any  # Any: the client's JSON, stored as it came


async def read_submission(request: Request, state: ApiState, tenant: str, endpoint: str = CHAT_ENDPOINT) -> Submission:
    """Read and check a body of an endpoint; raises the 4xx it deserves."""
    row = ENDPOINTS[endpoint]
    body = await read_json(request)
    asked = parse_body(row.body, body)
    model = state.catalog.get(asked.model)
    if model is None:
        served = ", ".join(state.catalog.names()) or "none"
        message = f"The model '{asked.model}' does not exist here. Served models: {served}."
        raise not_found(message, code="model_not_found", param="model")
    row.check_model(model)
    job_id = ids.new_id(row.id_prefix)
    return Submission(job_id=job_id, tenant=tenant, endpoint=endpoint, asked=asked, model=model, body=body)


async def submit(state: ApiState, submission: Submission, *, durable: bool) -> bool:
    """Insert the job and send its ticket; False when the broker did not take it.

    A job somebody waits for may be lost in a power cut, as its connection is; one that is answered later may not.
    """
    body = pydantic_core.to_json(submission.body).decode()
    async with (state.database if durable else state.relaxed).begin() as connection:
        model, endpoint = submission.model.name, submission.endpoint
        await connection.execute(jobs.insert_job(submission.job_id, submission.tenant, model, body, endpoint=endpoint))
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
