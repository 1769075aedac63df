"""`/v1/batches`: create, get, list, cancel."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from api.admission import charge_batch, check_open_batches
from api.batch_pace import paces, with_pace
from api.bodies import read_wire
from api.idempotency import create_once, digest_of_body
from api.openapi import takes
from api.paging import page, unix_seconds
from api.routes.files import find_file
from api.scopes import needs
from api.state import ApiState, StateDep, TenantDep, caller_of
from core import ids
from core.errors import ApiError, bad_request, not_found
from core.failpoints import Point, failpoint
from core.ids import is_id
from core.keys import Scope
from core.states import FINAL_BATCH_STATES, BatchState
from core.wire.batch import BatchCreate, window_seconds
from core.wire.objects import (
    BatchErrors,
    BatchObject,
    BatchUsage,
    InputTokensDetails,
    ListObject,
    OutputTokensDetails,
    RequestCounts,
)
from db import batches

router = APIRouter(tags=["batches"], dependencies=[needs(Scope.INFERENCE)])

_MOMENTS = (
    "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
    "cancelled_at",
)  # fmt: skip


@router.post("/v1/batches", openapi_extra=takes(BatchCreate))
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
    request: Request, body: BatchCreate, batch_id: str, state: ApiState, tenant: str
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
        row = (await connection.execute(statement)).one()
        failpoint(Point.BATCH_INSERTED)
    failpoint(Point.BATCH_COMMITTED)
    await state.sender.send(lambda: state.sender.tickets.prepare(row.id))
    failpoint(Point.BATCH_TICKETED)
    return _to_object(row, None)


@router.get("/v1/batches")
async def list_batches(
    state: StateDep,
    tenant: TenantDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListObject[BatchObject]:
    """Newest first."""
    async with state.database.connect() as connection:
        if after is not None and await _find(connection, after, tenant) is None:
            raise bad_request("Invalid value for 'after': there is no such batch.", code="invalid_value", param="after")
        rows = (await connection.execute(batches.list_batches(tenant, after=after, limit=limit + 1))).all()
        objects = await _with_totals(connection, list(rows))
    return page(objects, limit)


@router.get("/v1/batches/{batch_id}")
async def get_batch(batch_id: str, state: StateDep, tenant: TenantDep) -> BatchObject:
    """The batch, with its counts as of now."""
    async with state.database.connect() as connection:
        row = await _find(connection, batch_id, tenant)
        if row is None:
            raise _missing(batch_id)
        return (await _with_totals(connection, [row]))[0]


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, state: StateDep, tenant: TenantDep) -> BatchObject:
    """Stop taking lines; finished ones are kept. Asking twice is asking once."""
    async with state.database.begin() as connection:
        row = await _find(connection, batch_id, tenant)
        if row is None:
            raise _missing(batch_id)
        moved = (await connection.execute(batches.move(batch_id, BatchState.CANCELLING))).one_or_none()
        row = await _find(connection, batch_id, tenant)
        assert row is not None, "it was there a moment ago"
        if moved is None and row.status not in (BatchState.CANCELLING, BatchState.CANCELLED):
            raise _too_late(str(row.status))
        is_clerks_turn = (await connection.execute(batches.is_clerks_turn(batch_id))).scalar_one()
        shown = (await _with_totals(connection, [row]))[0]
        failpoint(Point.BATCH_CANCELLING)
    failpoint(Point.BATCH_CANCELLED)
    if is_clerks_turn:
        await state.sender.send(lambda: state.sender.tickets.finalize(batch_id))
    return shown


async def check_input(state: ApiState, file_id: str, tenant: str) -> None:
    """The input must be a batch file of the tenant; said at once, while somebody listens."""
    try:
        row = await find_file(state, file_id, tenant)
    except ApiError:
        raise not_found(f"There is no file '{file_id[:64]}'.", param="input_file_id") from None
    if row.purpose != "batch":
        message = f"The input file has the purpose '{row.purpose}'; upload it with purpose 'batch'."
        raise bad_request(message, code="invalid_file_purpose", param="input_file_id")


async def _find(connection: AsyncConnection, batch_id: str, tenant: str) -> Row[*tuple[Any, ...]] | None:
    if not is_id(batch_id):
        return None
    return (await connection.execute(batches.find_batch(batch_id, tenant))).one_or_none()


async def _with_totals(connection: AsyncConnection, rows: list[Row[*tuple[Any, ...]]]) -> list[BatchObject]:
    """Batches that have not ended get what their shards counted so far."""
    open_ids = [row.id for row in rows if row.status not in FINAL_BATCH_STATES]
    pace = await paces(connection, rows)
    totals = {}
    if open_ids:
        totals = {row[0]: row for row in (await connection.execute(batches.running_totals(open_ids))).all()}
    shown = [_to_object(row, totals.get(row.id)) for row in rows]
    return [with_pace(batch, row, pace.get(batch.id)) for batch, row in zip(shown, rows, strict=True)]


async def existing_batch(connection: AsyncConnection, batch_id: str, tenant: str) -> Row[*tuple[Any, ...]]:
    """A batch of this tenant, or the 404 that unknown and foreign ids share."""
    row = await _find(connection, batch_id, tenant)
    if row is None:
        raise _missing(batch_id)
    return row


async def show_batch(connection: AsyncConnection, row: Row[*tuple[Any, ...]]) -> BatchObject:
    """The object of a row, with its counts as of now."""
    return (await _with_totals(connection, [row]))[0]


def _to_object(row: Row[*tuple[Any, ...]], running: Row[*tuple[Any, ...]] | None) -> BatchObject:
    sums = running[1:] if running else (0,) * 6
    completed, failed, prompt, completion, cached, reasoning = (int(value) for value in sums)
    usage = BatchUsage(
        input_tokens=row.prompt_tokens + prompt,
        input_tokens_details=InputTokensDetails(cached_tokens=row.cached_tokens + cached),
        output_tokens=row.completion_tokens + completion,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=row.reasoning_tokens + reasoning),
        total_tokens=row.prompt_tokens + prompt + row.completion_tokens + completion,
    )
    moments = {name: unix_seconds(getattr(row, name)) for name in _MOMENTS}
    return BatchObject(
        id=row.id,
        endpoint=row.endpoint,
        model=row.model,
        errors=BatchErrors.model_validate_json(row.errors_json) if row.errors_json else None,
        input_file_id=row.input_file_id,
        completion_window=row.completion_window,
        status=str(row.status),
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        created_at=unix_seconds(row.created_at) or 0,
        request_counts=RequestCounts(
            total=row.lines, completed=row.lines_completed + completed, failed=row.lines_failed + failed
        ),
        usage=usage if usage.total_tokens else None,
        metadata=json.loads(row.metadata_json) if row.metadata_json else None,
        parent_batch_id=row.parent_batch_id,
        priority=row.priority,
        paused_at=unix_seconds(row.paused_at),
        **moments,
    )


def _missing(batch_id: str) -> ApiError:
    return not_found(f"There is no batch '{batch_id[:64]}'.", param="batch_id")


def _too_late(status: str) -> ApiError:
    return bad_request(f"The batch is {status}; only a running one can be cancelled.", code="batch_not_cancellable")
