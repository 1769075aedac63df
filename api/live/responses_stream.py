"""Responses API: run a request as a chat job, and turn the job's updates into typed events.

The conversion of requests and answers is in `core.schemas.responses`.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from sqlalchemy import Insert
from sqlalchemy.ext.asyncio import AsyncEngine

from api.http.sse import PING
from api.live.follower import FramesReceived, Idle, JobEnded, JobUpdate
from api.live.job_client import JobClient
from api.live.submission import Submission, SubmissionBuilder, cancelled_problem
from api.schemas.responses_events import LiveEvents, ResponseEvent, events_after
from api.services.waiters import WaitEnded, Waiters
from core import ids
from core.errors import SERVER_ERROR, ApiError, Problem, bad_request, not_found
from core.ids import is_id
from core.queue.events import EventKind
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from core.schemas.responses.chat import as_responses_problem, chat_body_of, input_items
from core.schemas.responses.items import AnyItem, items_from_json, items_to_json, with_ids
from core.schemas.responses.objects import (
    ResponseObject,
    ResponseStatus,
    output_items,
    response_of,
    suffix_of,
    unfinished,
)
from core.schemas.responses.request import ResponsesRequest
from core.states import FINAL_JOB_STATES, JobState
from db import responses
from db.jobs import JobRow
from db.responses import ResponseRow

_POLL_SECONDS: Final = 1.0
_LOST: Final = "stream_interrupted"
_DELETED: Final = Problem(status=404, message="This response was deleted.", code="response_deleted")
_DIFFERENT: Final = Problem(
    status=500,
    message="The answer was generated again and differs from this stream. Retrieve the response to get all of it.",
    type=SERVER_ERROR,
    code=_LOST,
)


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
        """The response with the answer of its job."""
        return response_of(json.loads(answer), self.request, response_id=self.response_id, created_at=self.created_at)


async def prepare(
    request: ResponsesRequest, database: AsyncEngine, submissions: SubmissionBuilder, tenant: str, response_id: str
) -> tuple[ResponseRecord, Submission]:
    """The record of a new response, and the submission of its chat job; raises the 4xx of an invalid request."""
    history = await _history(database, request.previous_response_id, tenant) if request.previous_response_id else []
    body = chat_body_of(request, history)
    if request.stream or request.background:  # a background response may be streamed later
        body["stream"] = True
    try:
        submission = await submissions.build(parse_body(ChatRequest, body), body)
    except ApiError as error:
        raise ApiError(as_responses_problem(error.problem), error.headers) from None
    submission = replace(submission, job_id=ids.CHAT + suffix_of(response_id))
    record = ResponseRecord(
        response_id=response_id,
        job_id=submission.job_id,
        tenant=tenant,
        model=submission.model.name,
        created_at=int(time.time()),
        request=request,
    )
    return record, replace(submission, rows=(_row(record),)) if request.is_stored else submission


def _row(record: ResponseRecord) -> Insert:
    """The row of a stored response, inserted in the transaction of its job."""
    request, items = record.request, with_ids(input_items(record.request), suffix_of(record.job_id))
    return responses.insert_response(
        response_id=record.response_id,
        tenant_id=record.tenant,
        job_id=record.job_id,
        previous_id=request.previous_response_id,
        model=record.model,
        request=request.model_copy(update={"input": ""}).model_dump_json(by_alias=True, exclude_unset=True),
        input_items=items_to_json(items),
        is_background=bool(request.background),
    )


async def _history(database: AsyncEngine, response_id: str, tenant: str) -> list[AnyItem]:
    """The items of a conversation up to this response; raises the 4xx of one that cannot be continued."""
    if not is_id(response_id):
        raise _no_previous(response_id)
    async with database.connect() as connection:
        turns = await responses.conversation(response_id, tenant).async_fetch_all(connection)
    if not turns or turns[0].previous_id is not None:
        raise _no_previous(response_id)
    items: list[AnyItem] = []
    for turn in turns:
        if turn.answer is None:
            message = f"The response '{turn.id}' has no answer to continue from."
            raise bad_request(message, code="previous_response_not_completed", param="previous_response_id")
        items += [*items_from_json(turn.input_items), *output_items(json.loads(turn.answer), suffix_of(turn.id))]
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
    if row is None:
        raise not_found(f"Response with id '{response_id[:64]}' not found.", param="response_id")
    return row


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


class ResponseStream:
    """The typed events of a response after a number, for a client with this key, from the updates of its job."""

    def __init__(
        self, jobs: JobClient, waiters: Waiters, record: ResponseRecord, key_id: str | None, starting_after: int = -1
    ) -> None:
        self._jobs = jobs
        self._waiters = waiters
        self._record = record
        self._key_id = key_id
        self._starting_after = starting_after
        self._live = LiveEvents(record.without_answer("in_progress"))

    async def events(self, updates: AsyncIterator[JobUpdate]) -> AsyncGenerator[bytes]:
        """Yield encoded events; `updates` begin with the first frame of the job."""
        try:
            async for data in self._events(updates):
                if data:
                    yield data
        except WaitEnded as ended:
            yield _encoded(self._live.error(ended.problem))

    async def _events(self, updates: AsyncIterator[JobUpdate]) -> AsyncIterator[bytes]:
        """The same, with empty bytes for an update without new events."""
        yield self._new(self._live.start())
        async for update in updates:
            match update:
                case FramesReceived(frames=frames):
                    yield self._new(
                        [event for frame in frames for event in self._live.add_chunk(msgspec.json.decode(frame))]
                    )
                case Idle():
                    yield PING
                case JobEnded():
                    async for data in self._ending(update):
                        yield data
                    return

    async def _ending(self, ended: JobEnded) -> AsyncIterator[bytes]:
        """The last events: from the job's row, also after frames were lost."""
        if ended.is_local:
            yield _encoded(self._live.error(ended.problem or cancelled_problem()))
            return
        row = ended.row
        is_lost = ended.problem is not None and ended.problem.code == _LOST
        if row is None and (is_lost or ended.kind is EventKind.DONE):
            with self._waiters.open(self._key_id) as waiter:
                while (row := await self._jobs.find(self._record.job_id, self._record.tenant)) is not None:
                    if row.state in FINAL_JOB_STATES:
                        break
                    yield PING
                    with suppress(TimeoutError):
                        await waiter.wait(_POLL_SECONDS)
                else:
                    yield _encoded(self._live.error(_DELETED))
                    return
        if row is not None and row.answer is not None:
            remaining = self._live.finish(self._record.with_answer(str(row.answer)))
            yield _encoded(self._live.error(_DIFFERENT)) if remaining is None else self._new(remaining)
            return
        yield self._new(self._live.fail(_failure(self._record, ended, row)))

    def _new(self, events: list[ResponseEvent]) -> bytes:
        """Encode the events after the number that the client has."""
        return _encoded(events_after(events, self._starting_after))


def _failure(record: ResponseRecord, ended: JobEnded, row: JobRow | None) -> ResponseObject:
    problem = Problem.from_json(str(row.problem)) if row is not None and row.problem else ended.problem
    is_cancelled = ended.kind is EventKind.CANCELLED or (row is not None and row.state == JobState.CANCELLED)
    if is_cancelled:
        return record.without_answer("cancelled")
    return record.without_answer("failed", problem or cancelled_problem())


def _encoded(events: list[ResponseEvent]) -> bytes:
    return b"".join(event.encode() for event in events)
