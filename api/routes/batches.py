"""`/v1/batches`: create, get, list, cancel."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request

from api.access.admission import charge_batch, check_open_batches
from api.access.scopes import require_scopes
from api.batches.lookup import find_batch, missing_batch, to_batch_object, with_totals
from api.dependencies import AppState, StateDep, TenantDep, caller_of
from api.files.lookup import check_input
from api.http.json_body import read_wire
from api.http.openapi import request_docs
from api.http.pagination import page
from api.writes.idempotency import create_once, digest_of_body
from core import ids
from core.api_keys import Scope
from core.errors import ApiError, bad_request
from core.failpoints import Point, failpoint
from core.schemas.batch import BatchCreate, window_seconds
from core.schemas.objects import (
    BatchObject,
    ListObject,
)
from core.states import BatchState
from db import batches

router = APIRouter(tags=["batches"], dependencies=[require_scopes(Scope.INFERENCE)])


@router.post("/v1/batches", openapi_extra=request_docs(BatchCreate))
async def create_batch(request: Request, state: StateDep, tenant: TenantDep) -> BatchObject:
    """Take a file's lines; they are checked by a clerk right after."""
    body = await read_wire(request, BatchCreate)
    return await create_once(
        request,
        state,
        tenant,
        ids.BATCH,
        body_digest=lambda: digest_of_body(request),
        find=lambda batch_id: get_batch(batch_id, state, tenant),
        create=lambda batch_id: _insert_batch(request, body, batch_id, state, tenant),
    )


async def _insert_batch(
    request: Request, body: BatchCreate, batch_id: str, state: AppState, tenant: str
) -> BatchObject:
    await check_input(state, body.input_file_id, tenant)
    await charge_batch(request, state, caller_of(request))
    expiry = body.output_expires_after
    statement = batches.insert_batch(
        id=batch_id,
        tenant_id=tenant,
        key_id=caller_of(request).key_id,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        window_seconds=window_seconds(body.completion_window),
        output_expires_seconds=expiry.seconds if expiry else None,
        metadata_json=json.dumps(body.metadata) if body.metadata is not None else None,
    )
    async with state.database.begin() as connection:
        await check_open_batches(connection, tenant)
        row = await statement.async_fetch_one(connection)
        failpoint(Point.BATCH_INSERTED)
    failpoint(Point.BATCH_COMMITTED)
    await state.sender.send(lambda: state.sender.tickets.prepare(row.id))
    failpoint(Point.BATCH_TICKETED)
    return to_batch_object(row, None)


@router.get("/v1/batches")
async def list_batches(
    state: StateDep,
    tenant: TenantDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListObject[BatchObject]:
    """Newest first."""
    async with state.database.connect() as connection:
        if after is not None and await find_batch(connection, after, tenant) is None:
            raise bad_request("Invalid value for 'after': there is no such batch.", code="invalid_value", param="after")
        rows = await batches.list_batches(tenant, after=after, limit=limit + 1).async_fetch_all(connection)
        objects = await with_totals(connection, rows)
    return page(objects, limit)


@router.get("/v1/batches/{batch_id}")
async def get_batch(batch_id: str, state: StateDep, tenant: TenantDep) -> BatchObject:
    """The batch, with its counts as of now."""
    async with state.database.connect() as connection:
        row = await find_batch(connection, batch_id, tenant)
        if row is None:
            raise missing_batch(batch_id)
        return (await with_totals(connection, [row]))[0]


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, state: StateDep, tenant: TenantDep) -> BatchObject:
    """Stop taking lines; finished ones are kept. Asking twice is asking once."""
    async with state.database.begin() as connection:
        row = await find_batch(connection, batch_id, tenant)
        if row is None:
            raise missing_batch(batch_id)
        moved = await batches.move(batch_id, BatchState.CANCELLING).async_fetch_optional(connection)
        row = await find_batch(connection, batch_id, tenant)
        assert row is not None, "it was there a moment ago"
        if moved is None and row.status not in (BatchState.CANCELLING, BatchState.CANCELLED):
            raise _too_late(str(row.status))
        is_clerks_turn = (await connection.execute(batches.is_ready_to_finalize(batch_id))).scalar_one()
        shown = (await with_totals(connection, [row]))[0]
        failpoint(Point.BATCH_CANCELLING)
    failpoint(Point.BATCH_CANCELLED)
    if is_clerks_turn:
        await state.sender.send(lambda: state.sender.tickets.finalize(batch_id))
    return shown


def _too_late(status: str) -> ApiError:
    return bad_request(f"The batch is {status}; only a running one can be cancelled.", code="batch_not_cancellable")
