"""`/v1/responses`: chat jobs in the shapes of OpenAI's Responses API; stored, continued, and run in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncEngine

from api.access.scopes import require_scopes
from api.dependencies import CallerDep, DatabaseDep, MetricsDep, TenantDep, WaitersDep
from api.http.event_stream import EventStream
from api.http.json_body import JsonBody
from api.http.openapi import response_docs
from api.http.pagination import page_of_list
from api.live.follower import JobUpdate
from api.live.job_client import JobClient, JobClientDep
from api.live.live_job import LiveJob, LiveJobsDep, ResponseRenderer
from api.live.response_records import ResponseRecord, find, prepare, prepare_count, record_of, response_of_row
from api.live.responses_stream import ResponseStream
from api.live.submission import SubmissionBuilderDep
from api.services.key_ring import Caller
from api.services.metrics import Metrics
from api.services.waiters import WaitEnded, Waiters
from api.writes.idempotency import CreateOnceDep
from core import ids
from core.api_keys import Scope
from core.errors import bad_request
from core.failpoints import Point, failpoint
from core.queue.events import EventKind
from core.schemas.responses.chat import as_responses_problem
from core.schemas.responses.items import items_from_json
from core.schemas.responses.objects import RESPONSE, DeletedResponse, InputTokens, ResponseItemList, ResponseObject
from core.schemas.responses.request import ResponsesRequest
from db import responses
from db.responses import ResponseRow

router = APIRouter(tags=["responses"], dependencies=[require_scopes(Scope.INFERENCE)])

_CANCEL_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class StoredStreams:
    """Streams of stored responses; their jobs go on when the client disconnects."""

    caller: Caller
    database: AsyncEngine
    jobs: JobClient
    waiters: Waiters
    metrics: Metrics

    async def open(self, response_id: str, starting_after: int | None = None) -> EventStream:
        """The events of a response, after a number if one is given; raises the 404."""
        row = await find(self.database, response_id, self.caller.tenant)
        if _is_line(row):
            message = "A response of a batch has no stream; retrieve it without 'stream'."
            raise bad_request(message, code="invalid_value", param="stream")
        record = record_of(row, self.caller.tenant)
        return EventStream(self._events(record, -1 if starting_after is None else starting_after))

    async def _events(self, record: ResponseRecord, starting_after: int) -> AsyncIterator[bytes]:
        key_id = self.caller.key_id
        stream = ResponseStream(self.jobs, self.waiters, record, key_id, starting_after)
        with self.metrics.open_streams.track_inprogress():
            async with self.jobs.relay.follow(record.job_id, key_id) as subscription:
                items = self.jobs.follower(subscription, record.tenant).updates(from_replay=True)
                async for data in stream.events(items):
                    yield data


async def get_stored_streams(
    caller: CallerDep, database: DatabaseDep, jobs: JobClientDep, waiters: WaitersDep, metrics: MetricsDep
) -> StoredStreams:
    """The streams of a request; a class as dependency would be constructed in a thread."""
    return StoredStreams(caller, database, jobs, waiters, metrics)


StoredStreamsDep = Annotated[StoredStreams, Depends(get_stored_streams)]


@router.post("/v1/responses", response_class=Response, responses=response_docs(ResponseObject, streams=True))
async def create_response(
    request: Request,
    body: JsonBody[ResponsesRequest],
    tenant: TenantDep,
    caller: CallerDep,
    database: DatabaseDep,
    submissions: SubmissionBuilderDep,
    live_jobs: LiveJobsDep,
    waiters: WaitersDep,
    create_once: CreateOnceDep,
    streams: StoredStreamsDep,
) -> Response:
    """Answer at once, as a stream of typed events with `stream`, or later with `background`."""
    if not body.background:
        record, submission = await prepare(body, database, submissions, tenant, ids.new_id(RESPONSE))
        renderer = ResponseRenderer(
            stream=lambda live, first: ResponseStream(live_jobs.jobs, waiters, record, caller.key_id).events(
                live.updates(first)
            ),
            whole=lambda answer: record.with_answer(answer).model_dump_json(by_alias=True),
            problem=as_responses_problem,
        )
        return await live_jobs.run_and_respond(request, submission, renderer)

    async def create(response_id: str) -> ResponseObject:
        record, submission = await prepare(body, database, submissions, tenant, response_id)
        await live_jobs.jobs.submit(submission, durable=True)
        failpoint(Point.RESPONSE_CREATED)
        return record.without_answer("queued")

    async def get(response_id: str) -> ResponseObject:
        return response_of_row(await find(database, response_id, tenant), tenant)

    response = await create_once(RESPONSE, find=get, create=create)
    if body.stream:
        return await streams.open(response.id)
    return Response(response.model_dump_json(by_alias=True), media_type="application/json")


@router.post("/v1/responses/input_tokens", response_class=Response, responses=response_docs(InputTokens))
async def count_input_tokens(
    request: Request,
    body: JsonBody[ResponsesRequest],
    tenant: TenantDep,
    database: DatabaseDep,
    submissions: SubmissionBuilderDep,
    live_jobs: LiveJobsDep,
) -> Response:
    """Count the tokens of a request as the model reads them: with its template, tools and earlier responses."""
    submission = await prepare_count(body, database, submissions, tenant)
    return await live_jobs.run_and_respond(
        request, submission, ResponseRenderer(stream=_no_stream, problem=as_responses_problem)
    )


@router.get("/v1/responses/{response_id}", responses=response_docs(ResponseObject, streams=True))
async def get_response(
    response_id: str,
    database: DatabaseDep,
    tenant: TenantDep,
    streams: StoredStreamsDep,
    stream: bool = False,
    starting_after: int | None = Query(None, ge=0),
) -> ResponseObject:
    """The response as it is; or with `stream` its events, those after a number if one is given."""
    if stream:
        return await streams.open(response_id, starting_after)  # type: ignore[return-value]  # not JSON
    row = await find(database, response_id, tenant)
    if starting_after is not None:
        message = "'starting_after' is only allowed with 'stream'."
        raise bad_request(message, code="invalid_value", param="starting_after")
    return response_of_row(row, tenant)


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(
    response_id: str, database: DatabaseDep, jobs: JobClientDep, tenant: TenantDep
) -> ResponseObject:
    """Cancel a response that runs in the background; one that has ended stays as it is."""
    row = await find(database, response_id, tenant)
    if not record_of(row, tenant).request.background:
        message = "Only responses that were created with 'background' can be cancelled."
        raise bad_request(message, code="response_not_cancellable", param="response_id")
    async with jobs.relay.follow(row.job_id) as subscription:
        await jobs.cancel(row.job_id)
        row = await find(database, response_id, tenant)
        if response_of_row(row, tenant).status == "in_progress":  # its worker sees it at its next step
            with suppress(TimeoutError, WaitEnded):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    while (await subscription.get(_CANCEL_SECONDS)).kind is EventKind.FRAMES:
                        pass
    return response_of_row(await find(database, response_id, tenant), tenant)


@router.delete("/v1/responses/{response_id}")
async def delete_response(
    response_id: str, database: DatabaseDep, jobs: JobClientDep, tenant: TenantDep
) -> DeletedResponse:
    """Delete a response with its input and answer; one that runs is cancelled."""
    row = await find(database, response_id, tenant)
    if not _is_line(row):
        await jobs.cancel(row.job_id)
    async with database.begin() as connection:
        if not _is_line(row):
            await connection.execute(responses.delete_response(response_id, tenant))
        elif (await connection.execute(responses.delete_line(row.job_id, tenant))).one_or_none() is None:
            message = "The batch of this response has not ended; delete it after that."
            raise bad_request(message, code="batch_not_ended", param="response_id")
    return DeletedResponse(id=response_id)


def _no_stream(_: LiveJob, __: JobUpdate) -> AsyncGenerator[bytes]:
    raise AssertionError("a count is not streamed")


def _is_line(row: ResponseRow) -> bool:
    """Is this the response of a batch line?"""
    return row.job_id.startswith(ids.BATCH_LINE)


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    database: DatabaseDep,
    tenant: TenantDep,
    limit: int = Query(20, ge=1, le=100),
    order: Literal["asc", "desc"] = "desc",
    after: str | None = Query(None, max_length=128),
) -> ResponseItemList:
    """The input items of this response, without those of the responses that it continues."""
    items = items_from_json((await find(database, response_id, tenant)).input_items)
    if order == "desc":
        items.reverse()
    return ResponseItemList(**dict(page_of_list(items, after, limit)))
