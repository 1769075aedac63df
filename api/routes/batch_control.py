"""Steering a batch: pause and resume, change, retry; and the report of how it went."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import BinaryIO, Final

import msgspec
from fastapi import APIRouter, Request
from sqlalchemy.ext.asyncio import AsyncConnection

from api.access.admission import charge_batch, check_open_batches
from api.access.scopes import require_scopes
from api.batches.lookup import existing_batch, show_batch
from api.dependencies import AppState, StateDep, TenantDep, caller_of
from api.http.json_body import read_wire
from api.http.openapi import request_docs
from api.schemas.batch_extensions import (
    BatchPatch,
    BatchReport,
    BatchRetry,
    EngineUse,
    ErrorCount,
    LatencySeconds,
)
from api.writes.commit_check import make_with_file
from core import ids
from core.api_keys import Scope
from core.errors import ApiError, bad_request
from core.failpoints import Point, failpoint
from core.schemas.batch import window_seconds
from core.schemas.objects import BatchObject
from core.states import FINAL_BATCH_STATES, BatchState
from db import batch_control, batch_requests, batch_results, batches, files
from db.batch_requests import Latencies
from db.batch_results import RetryLine
from db.batches import BatchRow
from db.query import Query

router = APIRouter(tags=["batch control"], dependencies=[require_scopes(Scope.INFERENCE)])

_PAGE_LINES: Final = 500
_TOP_CODES: Final = 10
_RETRY_BODY: Final = {"requestBody": {**request_docs(BatchRetry)["requestBody"], "required": False}}


class _InputLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an input file; `body` goes out as it is stored."""

    custom_id: str
    method: str = "POST"
    url: str
    body: msgspec.Raw


@router.post("/v1/batches/{batch_id}/pause")
async def pause_batch(batch_id: str, state: StateDep, tenant: TenantDep) -> BatchObject:
    """No further shard is taken; lines that run are finished, and the window goes on."""
    async with state.database.begin() as connection:
        batch = await existing_batch(connection, batch_id, tenant)
        row = await batch_control.pause(batch_id, tenant).async_fetch_optional(connection)
        if row is None:
            raise _too_late(batch, "paused", "batch_not_pausable")
        return await show_batch(connection, row)


@router.post("/v1/batches/{batch_id}/resume")
async def resume_batch(batch_id: str, state: StateDep, tenant: TenantDep) -> BatchObject:
    """Go on after a pause; a batch that is not paused stays as it is."""
    async with state.database.begin() as connection:
        batch = await existing_batch(connection, batch_id, tenant)
        row = await batch_control.resume(batch_id, tenant).async_fetch_optional(connection)
        if row is None:
            raise _too_late(batch, "resumed", "batch_not_pausable")
        models = list((await connection.execute(batch_control.open_models(batch_id))).scalars())
        shown = await show_batch(connection, row)
    failpoint(Point.BATCH_RESUMED)
    for model in models:
        await state.sender.send(lambda model=model: state.sender.tickets.run_shards(model))  # type: ignore[misc]
    return shown


@router.patch("/v1/batches/{batch_id}", openapi_extra=request_docs(BatchPatch))
async def change_batch(batch_id: str, request: Request, state: StateDep, tenant: TenantDep) -> BatchObject:
    """Change priority, window or metadata; all of what was asked, or nothing."""
    change = await read_wire(request, BatchPatch)
    async with state.database.begin() as connection:
        row = await existing_batch(connection, batch_id, tenant)
        if change.priority is not None or change.completion_window is not None:
            row = await _set_urgency(connection, row, change)
        if "metadata" in change.model_fields_set:
            metadata = json.dumps(change.metadata) if change.metadata is not None else None
            row = await batch_control.set_metadata(batch_id, tenant, metadata).async_fetch_one(connection)
        return await show_batch(connection, row)


@router.post("/v1/batches/{batch_id}/retry", openapi_extra=_RETRY_BODY)
async def retry_batch(batch_id: str, request: Request, state: StateDep, tenant: TenantDep) -> BatchObject:
    """A new batch of the lines that have no answer, or of those named; see `output?merged=true` for the whole."""
    retry = await read_wire(request, BatchRetry) if await request.body() else BatchRetry()
    async with state.database.connect() as connection:
        batch = await existing_batch(connection, batch_id, tenant)
        if batch.status not in FINAL_BATCH_STATES:
            message = f"The batch is {batch.status}; only one that has ended can be retried."
            raise bad_request(message, code="batch_not_ended")
        await charge_batch(request, state, caller_of(request))
        file_id = ids.new_id(ids.FILE)
        await _write_input(state, connection, batch, retry.custom_ids, file_id)
    failpoint(Point.RETRY_STORED)
    row = await _insert_retry(state, batch, file_id, caller_of(request).key_id)
    failpoint(Point.RETRY_COMMITTED)
    await state.sender.send(lambda: state.sender.tickets.prepare(row.id))
    async with state.database.connect() as connection:
        return await show_batch(connection, row)


@router.get("/v1/batches/{batch_id}/report")
async def get_report(batch_id: str, state: StateDep, tenant: TenantDep) -> BatchReport:
    """How the lines that have ended went, and what computed them."""
    async with state.database.connect() as connection:
        batch = await show_batch(connection, await existing_batch(connection, batch_id, tenant))
        latencies = await batch_requests.latencies(batch_id).async_fetch_one(connection)
        device_seconds = (await connection.execute(batch_requests.active_seconds(batch_id))).scalar_one()
        codes = await batch_requests.error_codes(batch_id, _TOP_CODES).async_fetch_all(connection)
        engines = await batch_requests.engines(batch_id).async_fetch_all(connection)
    return BatchReport(
        id=batch.id,
        status=batch.status,
        request_counts=batch.request_counts,
        usage=batch.usage,
        tokens_per_second=batch.tokens_per_second,
        latency_seconds=_latency(latencies),
        device_seconds=round(device_seconds, 3),
        line_seconds=round(latencies.seconds or 0.0, 3),
        errors=[ErrorCount(**row._asdict()) for row in codes],
        engines=[EngineUse(**row._asdict()) for row in engines],
    )


def _latency(measured: Latencies) -> LatencySeconds | None:
    if not measured.lines:
        return None
    lines, seconds, *shown = (value or 0 for value in measured)
    names = measured._fields[2:]
    rounded = {name: round(value, 4) for name, value in zip(names, shown, strict=True)}
    return LatencySeconds(count=measured.lines, mean=round(seconds / lines, 4), **rounded)


async def _set_urgency(connection: AsyncConnection, batch: BatchRow, change: BatchPatch) -> BatchRow:
    """The changed row, or the 400 that says why it cannot be."""
    spelled = change.completion_window
    seconds = window_seconds(spelled) if spelled is not None else None
    window = (spelled, seconds) if spelled is not None and seconds is not None else None
    statement = batch_control.set_urgency(batch.id, batch.tenant_id, priority=change.priority, window=window)
    changed = await statement.async_fetch_optional(connection)
    if changed is not None:
        return changed
    if batch.status in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
        message = "Invalid value for 'completion_window': a window of that length would be over already."
        raise bad_request(message, code="invalid_value", param="completion_window")
    raise _too_late(batch, "changed in priority or window", "batch_not_changeable")


async def _write_input(
    state: AppState, connection: AsyncConnection, batch: BatchRow, names: list[str] | None, file_id: str
) -> None:
    """The chosen lines as an input file, a page at a time; every name must be one of the batch's."""
    num_lines = after = 0
    with state.files.write(file_id) as stream:
        while rows := await _retry_page(batch.id, names, after).async_fetch_all(connection):
            await asyncio.to_thread(_write_lines, stream, batch.endpoint, rows)
            num_lines, after = num_lines + len(rows), rows[-1].line
        if names is not None and num_lines < len(set(names)):
            message = f"Invalid value for 'custom_ids': {len(set(names)) - num_lines} of them are not in the batch."
            raise bad_request(message, code="invalid_value", param="custom_ids")
        if not num_lines:
            raise bad_request(
                "Every line of the batch has an answer; there is nothing to retry.", code="nothing_to_retry"
            )


def _retry_page(batch_id: str, names: list[str] | None, after: int) -> Query[RetryLine]:
    return batch_results.retry_lines(batch_id, names, after, _PAGE_LINES)


def _write_lines(stream: BinaryIO, endpoint: str, rows: list[RetryLine]) -> None:
    encode = msgspec.json.encode
    for _, custom_id, body in rows:
        stream.write(encode(_InputLine(custom_id=custom_id, url=endpoint, body=msgspec.Raw(body.encode()))) + b"\n")


async def _insert_retry(state: AppState, batch: BatchRow, file_id: str, key_id: str | None) -> BatchRow:
    """Rows of the input file and of the new batch, which takes after its parent."""
    batch_id = ids.new_id(ids.BATCH)
    file = files.add_file(
        id=file_id,
        tenant_id=batch.tenant_id,
        purpose="batch",
        filename=f"{batch.id}_retry.jsonl",
        bytes=state.files.size(file_id),
        expires_at=datetime.now(UTC) + timedelta(days=state.settings.file_days),
    )
    taken_over = ("tenant_id", "endpoint", "completion_window", "window_seconds", "output_expires_seconds",
                  "metadata_json", "priority")  # fmt: skip
    statement = batches.insert_batch(
        id=batch_id,
        input_file_id=file_id,
        parent_batch_id=batch.id,
        key_id=key_id,
        **{name: getattr(batch, name) for name in taken_over},
    )

    async def insert() -> BatchRow:
        async with state.database.begin() as connection:
            await check_open_batches(connection, batch.tenant_id)
            await connection.execute(file)
            return await statement.async_fetch_one(connection)

    async def find() -> BatchRow | None:
        async with state.database.connect() as connection:
            return await batches.find_batch(batch_id, batch.tenant_id).async_fetch_optional(connection)

    return await make_with_file(state, file_id, insert, find)


def _too_late(batch: BatchRow, what: str, code: str) -> ApiError:
    return bad_request(f"The batch is {batch.status}; it cannot be {what} any more.", code=code)
