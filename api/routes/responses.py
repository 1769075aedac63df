"""`/v1/responses`: the same jobs as chat, in the shapes of OpenAI's Responses API; kept, continued, run in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Final, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from api.access.scopes import require_scopes
from api.dependencies import AppState, CallerDep, StateDep, TenantDep
from api.http.event_stream import EventStream
from api.http.json_body import read_wire
from api.http.openapi import request_docs, response_docs
from api.live.follower import Follower
from api.live.live_job import ResponseRenderer, run_and_respond
from api.live.responses_stream import ResponseRecord, find, known_of, prepare, response_events, response_of_row
from api.live.submission import Submission, cancel, submit
from api.services.key_ring import Caller
from api.services.waiters import WaitEnded
from api.writes.idempotency import create_once, digest_of_body
from core import ids
from core.api_keys import Scope
from core.errors import bad_request
from core.failpoints import Point, failpoint
from core.queue.events import EventKind
from core.schemas.responses.chat import as_responses_problem
from core.schemas.responses.items import items_from_json
from core.schemas.responses.objects import RESPONSE, DeletedResponse, ResponseItemList, ResponseObject
from core.schemas.responses.request import ResponsesRequest
from db import responses
from db.jobs import find_job

router = APIRouter(tags=["responses"], dependencies=[require_scopes(Scope.INFERENCE)])

_CANCEL_SECONDS: Final = 2.0


@router.post(
    "/v1/responses", openapi_extra=request_docs(ResponsesRequest), responses=response_docs(ResponseObject, streams=True)
)
async def create_response(request: Request, state: StateDep, tenant: TenantDep, caller: CallerDep) -> Response:
    """Answer at once, as a stream of typed events with `stream`, or later with `background`."""
    body = await read_wire(request, ResponsesRequest)
    if not body.background:
        known, submission = await prepare(request, body, state, tenant, ids.new_id(RESPONSE))
        return await _answer(request, state, known, submission)
    response = await _begin(request, body, state, tenant)
    if body.stream:
        return await _stream(state, response.id, tenant, caller)
    return Response(response.model_dump_json(by_alias=True), media_type="application/json")


@router.get("/v1/responses/{response_id}", responses=response_docs(ResponseObject, streams=True))
async def get_response(
    response_id: str,
    state: StateDep,
    tenant: TenantDep,
    caller: CallerDep,
    stream: bool = False,
    starting_after: int | None = Query(None, ge=0),
) -> ResponseObject:
    """The response as it is; or with `stream` its events, those after a number if one is given."""
    if stream:
        return await _stream(state, response_id, tenant, caller, starting_after)  # type: ignore[return-value]  # not JSON
    row = await find(state, response_id, tenant)
    if starting_after is not None:
        message = "'starting_after' is only allowed with 'stream'."
        raise bad_request(message, code="invalid_value", param="starting_after")
    return response_of_row(row, tenant)


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, state: StateDep, tenant: TenantDep) -> ResponseObject:
    """Stop one that runs in the background; one that has ended stays as it is."""
    row = await find(state, response_id, tenant)
    if not known_of(row, tenant).request.background:
        message = "Only responses that were created with 'background' can be cancelled."
        raise bad_request(message, code="response_not_cancellable", param="response_id")
    async with state.relay.follow(row.job_id) as subscription:
        await cancel(state, row.job_id)
        row = await find(state, response_id, tenant)
        if response_of_row(row, tenant).status == "in_progress":  # its worker needs a step to see it
            with suppress(TimeoutError, WaitEnded):
                async with asyncio.timeout(_CANCEL_SECONDS):
                    while (await subscription.get(_CANCEL_SECONDS)).kind is EventKind.FRAMES:
                        pass
    return response_of_row(await find(state, response_id, tenant), tenant)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, state: StateDep, tenant: TenantDep) -> DeletedResponse:
    """Forget it, with what was asked and answered; one that runs is stopped."""
    row = await find(state, response_id, tenant)
    await cancel(state, row.job_id)
    async with state.database.begin() as connection:
        await connection.execute(responses.delete_response(response_id, tenant))
    return DeletedResponse(id=response_id)


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    state: StateDep,
    tenant: TenantDep,
    limit: int = Query(20, ge=1, le=100),
    order: Literal["asc", "desc"] = "desc",
    after: str | None = Query(None, max_length=128),
) -> ResponseItemList:
    """What this response was asked; what it goes on from is with the earlier ones."""
    items = items_from_json((await find(state, response_id, tenant)).input_items)
    if order == "desc":
        items.reverse()
    known = [item.id for item in items]
    if after is not None and after not in known:
        raise bad_request(f"There is no item '{after[:64]}'.", code="invalid_value", param="after")
    start = 0 if after is None else known.index(after) + 1
    shown = items[start : start + limit]
    return ResponseItemList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(items) > start + limit,
    )


async def _begin(request: Request, body: ResponsesRequest, state: AppState, tenant: str) -> ResponseObject:
    """Take one that runs in the background, once for each `Idempotency-Key`."""

    async def create(response_id: str) -> ResponseObject:
        known, submission = await prepare(request, body, state, tenant, response_id)
        await submit(state, submission, durable=True)
        failpoint(Point.RESPONSE_CREATED)
        return known.without_answer("queued")

    async def get(response_id: str) -> ResponseObject:
        return response_of_row(await find(state, response_id, tenant), tenant)

    return await create_once(
        request,
        state,
        tenant,
        RESPONSE,
        body_digest=lambda: digest_of_body(request),
        find=get,
        create=create,
    )


async def _answer(request: Request, state: AppState, known: ResponseRecord, submission: Submission) -> Response:
    """Wait for it, and say it as a response, whole or in typed events."""
    shape = ResponseRenderer(
        stream=lambda live, first: response_events(state, known, submission.caller.key_id, live.items(first)),
        whole=lambda answer: known.with_answer(answer).model_dump_json(by_alias=True),
        problem=as_responses_problem,
    )
    return await run_and_respond(request, state, submission, shape)


async def _stream(
    state: AppState, response_id: str, tenant: str, caller: Caller, starting_after: int | None = None
) -> EventStream:
    """The events of a kept response, those after a number if one is given."""
    known = known_of(await find(state, response_id, tenant), tenant)
    return EventStream(_followed(state, known, caller.key_id, -1 if starting_after is None else starting_after))


async def _followed(
    state: AppState, known: ResponseRecord, key_id: str | None, starting_after: int
) -> AsyncIterator[bytes]:
    """The stream of a kept response; it runs on when the reader leaves."""
    with state.metrics.open_streams.track_inprogress():
        async with state.relay.follow(known.job_id, key_id) as subscription:
            items = Follower(state, subscription, partial(find_job, subscription.job_id, known.tenant)).items(
                from_replay=True
            )
            async for data in response_events(state, known, key_id, items, starting_after):
                yield data
