"""Records of responses: create one with its chat job, find it, continue it, and show it in its present state.

A response of a batch has no row of its own: it is the answer of its line, which has the same suffix in its id.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

from sqlalchemy import Insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.live.submission import Submission, SubmissionBuilder
from core import ids
from core.errors import ApiError, Problem, bad_request, not_found
from core.ids import is_id
from core.models.capabilities import Feature
from core.schemas.base import parse_body
from core.schemas.endpoints import INPUT_TOKENS_ENDPOINT, check_feature
from core.schemas.responses.chat import as_responses_problem, chat_body_of, input_items
from core.schemas.responses.items import AnyItem, items_from_json, items_to_json, with_ids
from core.schemas.responses.objects import (
    RESPONSE,
    ResponseObject,
    ResponseStatus,
    output_items,
    response_of,
    suffix_of,
    unfinished,
)
from core.schemas.responses.request import ResponsesRequest
from core.states import JobState
from core.strict_json import parse_json
from db import responses
from db.responses import ResponseRow, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRecord:
    """The facts of a response that exist before its answer."""

    response_id: str
    job_id: str
    tenant: str
    model: str
    created_at: int
    request: ResponsesRequest

    def without_answer(self, status: ResponseStatus, problem: Problem | None = None) -> ResponseObject:
        """The response while it is queued or running, or after it failed."""
        return unfinished(
            self.request,
            response_id=self.response_id,
            created_at=self.created_at,
            model=self.model,
            status=status,
            problem=None if problem is None else as_responses_problem(problem),
        )

    def with_answer(self, answer: str) -> ResponseObject:
        """The response with the answer of its job: a chat, or for a batch line the response itself."""
        parsed = json.loads(answer)
        if parsed["object"] == "response":
            return ResponseObject.model_validate(parsed)
        return response_of(parsed, self.request, response_id=self.response_id, created_at=self.created_at)


async def prepare(
    request: ResponsesRequest, database: AsyncEngine, submissions: SubmissionBuilder, tenant: str, response_id: str
) -> tuple[ResponseRecord, Submission]:
    """The record of a new response, and the submission of its chat job; raises the 4xx of an invalid request."""
    history = await history_of(database, request.previous_response_id, tenant) if request.previous_response_id else []
    body = chat_body_of(request, history)
    if request.stream or request.background:  # a background response may be streamed later
        body["stream"] = True
    try:
        submission = await submissions.build(body, is_live=not request.background)
    except ApiError as error:
        raise ApiError(as_responses_problem(error.problem), error.headers) from None
    submission = replace(submission, job_id=ids.CHAT + suffix_of(response_id), others=())
    record = ResponseRecord(
        response_id=response_id,
        job_id=submission.job_id,
        tenant=tenant,
        model=submission.model.name,
        created_at=int(time.time()),
        request=request,
    )
    return record, replace(submission, rows=(_row(record),)) if request.is_stored else submission


async def prepare_count(
    request: ResponsesRequest, database: AsyncEngine, submissions: SubmissionBuilder, tenant: str
) -> Submission:
    """The submission of a job that counts the input tokens of a request; raises the 4xx of an invalid one."""
    history = await history_of(database, request.previous_response_id, tenant) if request.previous_response_id else []
    body = {**chat_body_of(request, history), "max_completion_tokens": 1}  # none is generated
    try:
        submission = await submissions.build(body)
        check_feature(submission.model, Feature.TOKEN_COUNTS, "model")
    except ApiError as error:
        raise ApiError(as_responses_problem(error.problem), error.headers) from None
    return replace(submission, endpoint=INPUT_TOKENS_ENDPOINT)


def _row(record: ResponseRecord) -> Insert:
    """The row of a stored response, inserted in the transaction of its job."""
    request, items = record.request, with_ids(input_items(record.request), suffix_of(record.job_id))
    return responses.insert_response(
        response_id=record.response_id,
        tenant_id=record.tenant,
        job_id=record.job_id,
        previous_id=request.previous_response_id,
        model=record.model,
        request=_request_json(request),
        input_items=items_to_json(items),
        is_background=bool(request.background),
    )


async def history_of(database: AsyncEngine, response_id: str, tenant: str) -> list[AnyItem]:
    """The items of a conversation up to this response; raises the 4xx of one that cannot be continued."""
    if not is_id(response_id):
        raise _no_previous(response_id)
    async with database.connect() as connection:
        turns = await responses.conversation(response_id, tenant).async_fetch_all(connection)
        if (first_id := turns[0].previous_id if turns else response_id) is not None:
            line = await _find_line(connection, first_id, tenant)  # a batch line continues no other response
            if line is None:
                raise _no_previous(response_id)
            turns = [Turn(line.id, None, line.input_items, line.answer), *turns]
    items: list[AnyItem] = []
    for turn in turns:
        if turn.answer is None:
            message = f"The response '{turn.id}' has no answer to continue from."
            raise bad_request(message, code="previous_response_not_completed", param="previous_response_id")
        answer = json.loads(turn.answer)
        is_response = answer["object"] == "response"
        output = (
            ResponseObject.model_validate(answer).output if is_response else output_items(answer, suffix_of(turn.id))
        )
        items += [*items_from_json(turn.input_items), *output]
    return items


def _no_previous(response_id: str) -> ApiError:
    message = f"Previous response with id '{response_id[:64]}' not found, or an earlier response of its conversation was deleted."
    return not_found(message, code="previous_response_not_found", param="previous_response_id")


async def find(database: AsyncEngine, response_id: str, tenant: str) -> ResponseRow:
    """Return the row of a stored response, or raise a 404; responses of other tenants do not exist."""
    row = None
    if is_id(response_id):
        async with database.connect() as connection:
            row = await responses.find_response(response_id, tenant).async_fetch_optional(connection)
            row = row or await _find_line(connection, response_id, tenant)
    if row is None:
        raise not_found(f"Response with id '{response_id[:64]}' not found.", param="response_id")
    return row


async def _find_line(connection: AsyncConnection, response_id: str, tenant: str) -> ResponseRow | None:
    """The row of a response of a batch, made from its line: both ids have the same suffix."""
    line_id = ids.BATCH_LINE + suffix_of(response_id)
    line = await responses.find_line(line_id, tenant).async_fetch_optional(connection)
    if line is None or response_id != RESPONSE + suffix_of(response_id):
        return None
    request = parse_body(ResponsesRequest, parse_json(line.body.encode()))
    if not request.is_stored:
        return None
    return ResponseRow(
        id=response_id,
        job_id=line.id,
        model=line.model,
        request=_request_json(request),
        input_items=items_to_json(with_ids(input_items(request), suffix_of(line.id))),
        created_at=line.created_at,
        state=JobState.COMPLETED,
        cancel_requested=False,
        answer=line.answer,
        problem=None,
    )


def _request_json(request: ResponsesRequest) -> str:
    """The text of the `request` column: the body without its input."""
    return request.model_copy(update={"input": ""}).model_dump_json(by_alias=True, exclude_unset=True)


def record_of(row: ResponseRow, tenant: str) -> ResponseRecord:
    """The record of a stored response."""
    return ResponseRecord(
        response_id=row.id,
        job_id=row.job_id,
        tenant=tenant,
        model=row.model,
        created_at=int(row.created_at.timestamp()),
        request=ResponsesRequest.model_validate_json(row.request),
    )


def response_of_row(row: ResponseRow, tenant: str) -> ResponseObject:
    """The response in its current state."""
    record = record_of(row, tenant)
    match row.state:
        case JobState.COMPLETED:
            return record.with_answer(str(row.answer))
        case JobState.FAILED | JobState.EXPIRED:
            return record.without_answer("failed", Problem.from_json(str(row.problem)))
        case JobState.CANCELLED:
            return record.without_answer("cancelled")
        case JobState.QUEUED:
            return record.without_answer("queued")
        case JobState.RUNNING:
            return record.without_answer("in_progress")
