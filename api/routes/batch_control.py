"""Control of a batch: pause, resume, change and retry; its report and timeline."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, BinaryIO, Final

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.access.admission import AdmissionDep, check_open_batches
from api.access.scopes import require_scopes
from api.batches.lookup import existing_batch, show_batch
from api.batches.timeline import read_timeline
from api.dependencies import CallerDep, DatabaseDep, FilesDep, ModelStatesDep, SettingsDep, TenantDep, TicketsDep
from api.http.json_body import JsonBody, OptionalJsonBody
from api.http.request_log import current_origin, note_ids
from api.schemas.batch_extensions import (
    BatchPatch,
    BatchReport,
    BatchRetry,
    BatchTimeline,
    EngineUse,
    ErrorCount,
    LatencySeconds,
)
from api.writes.commit_check import create_with_file
from core import ids
from core.api_keys import Scope
from core.error_codes import remedy
from core.errors import ApiError, Problem, bad_request
from core.failpoints import Point, failpoint
from core.files.file_store import FileStore
from core.schemas.batch import encode_line, window_seconds
from core.schemas.objects import BatchObject
from core.states import FINAL_BATCH_STATES, BatchState
from db import batch_control, batch_requests, batch_results, batches, files
from db.batch_requests import CodeCount, Latencies
from db.batch_results import RetryLine
from db.batches import BatchRow
from db.connections import async_transaction
from db.query import Query as Statement

router = APIRouter(tags=["batch control"], dependencies=[require_scopes(Scope.INFERENCE)])

_PAGE_LINES: Final = 500
_TOP_CODES: Final = 10


class _InputLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of an input file; `body` is written as it is stored."""

    custom_id: str
    method: str = "POST"
    url: str
    body: msgspec.Raw


@router.post("/v1/batches/{batch_id}/pause")
async def pause_batch(batch_id: str, database: DatabaseDep, tenant: TenantDep, states: ModelStatesDep) -> BatchObject:
    """Take no further shards; lines that run are finished, and the window goes on."""
    async with database.begin() as connection:
        batch = await existing_batch(connection, batch_id, tenant)
        row = await batch_control.pause(batch_id, tenant).async_fetch_optional(connection)
        if row is None:
            raise _too_late(batch, "paused", "batch_not_pausable")
        return await show_batch(connection, row, states)


@router.post("/v1/batches/{batch_id}/resume")
async def resume_batch(
    batch_id: str, database: DatabaseDep, tickets: TicketsDep, tenant: TenantDep, states: ModelStatesDep
) -> BatchObject:
    """Go on after a pause; a batch that is not paused stays as it is."""
    async with async_transaction(database, committed=Point.BATCH_RESUMED) as connection:
        batch = await existing_batch(connection, batch_id, tenant)
        row = await batch_control.resume(batch_id, tenant).async_fetch_optional(connection)
        if row is None:
            raise _too_late(batch, "resumed", "batch_not_pausable")
        models = list((await connection.execute(batch_control.open_models(batch_id))).scalars())
        shown = await show_batch(connection, row, states)
    for model in models:
        await tickets.send(lambda tickets, model=model: tickets.run_shards(model))  # type: ignore[misc]
    return shown


@router.patch("/v1/batches/{batch_id}")
async def change_batch(
    batch_id: str, change: JsonBody[BatchPatch], database: DatabaseDep, tenant: TenantDep, states: ModelStatesDep
) -> BatchObject:
    """Change priority, window or metadata; all of the fields sent, or none."""
    async with database.begin() as connection:
        row = await existing_batch(connection, batch_id, tenant)
        if change.priority is not None or change.completion_window is not None:
            row = await _set_urgency(connection, row, change)
        if "metadata" in change.model_fields_set:
            metadata = json.dumps(change.metadata) if change.metadata is not None else None
            row = await batch_control.set_metadata(batch_id, tenant, metadata).async_fetch_one(connection)
        return await show_batch(connection, row, states)


@router.post("/v1/batches/{batch_id}/retry")
async def retry_batch(
    batch_id: str,
    request: Request,
    retry: OptionalJsonBody[BatchRetry],
    tenant: TenantDep,
    caller: CallerDep,
    admission: AdmissionDep,
    database: DatabaseDep,
    tickets: TicketsDep,
    states: ModelStatesDep,
    store: FilesDep,
    settings: SettingsDep,
) -> BatchObject:
    """Create a batch of the lines without an answer, or of those named; `output?merged=true` shows all results together."""
    async with database.connect() as connection:
        batch = await existing_batch(connection, batch_id, tenant)
        if batch.status not in FINAL_BATCH_STATES:
            message = f"The batch is {batch.status}; only one that has ended can be retried."
            raise bad_request(message, code="batch_not_ended")
        await admission.charge_batch(request, caller)
        file_id = ids.new_id(ids.FILE)
        num_bytes = await _write_input(store, connection, batch, retry.custom_ids, file_id)
    failpoint(Point.RETRY_STORED)
    expires_at = datetime.now(UTC) + timedelta(days=settings.file_days)
    row = await _insert_retry(database, store, batch, file_id, num_bytes, caller.key_id, expires_at)
    failpoint(Point.RETRY_COMMITTED)
    await tickets.send(lambda tickets: tickets.prepare(row.id))
    async with database.connect() as connection:
        return await show_batch(connection, row, states)


@router.get("/v1/batches/{batch_id}/report")
async def get_report(batch_id: str, database: DatabaseDep, tenant: TenantDep, states: ModelStatesDep) -> BatchReport:
    """Latencies, errors and engines of the lines that have ended."""
    async with database.connect() as connection:
        batch = await show_batch(connection, await existing_batch(connection, batch_id, tenant), states)
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
        errors=[_error_count(row) for row in codes],
        engines=[EngineUse(**row._asdict()) for row in engines],
    )


@router.get("/v1/batches/{batch_id}/timeline")
async def get_timeline(
    batch_id: str, database: DatabaseDep, tenant: TenantDep, points: Annotated[int, Query(ge=1, le=500)] = 60
) -> BatchTimeline:
    """Lines that ended and their tokens over time, for charts: at most `points` buckets of the same length."""
    async with database.connect() as connection:
        return await read_timeline(connection, await existing_batch(connection, batch_id, tenant), points)


def _error_count(row: CodeCount) -> ErrorCount:
    message = Problem.from_json(row.problem).message
    return ErrorCount(code=row.code, lines=row.lines, message=message, custom_id=row.custom_id, remedy=remedy(row.code))


def _latency(measured: Latencies) -> LatencySeconds | None:
    if not measured.lines:
        return None
    lines, seconds, *shown = (value or 0 for value in measured)
    names = measured._fields[2:]
    rounded = {name: round(value, 4) for name, value in zip(names, shown, strict=True)}
    return LatencySeconds(count=measured.lines, mean=round(seconds / lines, 4), **rounded)


async def _set_urgency(connection: AsyncConnection, batch: BatchRow, change: BatchPatch) -> BatchRow:
    """Return the changed row, or raise the 400 that gives the reason."""
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
    store: FileStore, connection: AsyncConnection, batch: BatchRow, names: list[str] | None, file_id: str
) -> int:
    """Write the chosen lines as an input file, a page at a time; every name must be one of the batch's. Returns its size."""
    num_lines = after = 0
    async with contextmanager_in_threadpool(store.write(file_id)) as stream:
        while rows := await _retry_page(batch.id, names, after).async_fetch_all(connection):
            await asyncio.to_thread(_write_lines, stream, batch.endpoint, rows)
            num_lines, after = num_lines + len(rows), rows[-1].line
        if names is not None and num_lines < len(set(names)):
            message = f"Invalid value for 'custom_ids': {len(set(names)) - num_lines} of them are no lines with a body."
            raise bad_request(message, code="invalid_value", param="custom_ids")
        if not num_lines:
            raise bad_request(
                "Every line of the batch has an answer, or a body that cannot be read; there is nothing to retry.",
                code="nothing_to_retry",
            )
        return stream.tell()


def _retry_page(batch_id: str, names: list[str] | None, after: int) -> Statement[RetryLine]:
    return batch_results.retry_lines(batch_id, names, after, _PAGE_LINES)


def _write_lines(stream: BinaryIO, endpoint: str, rows: list[RetryLine]) -> None:
    for _, custom_id, body in rows:
        stream.write(encode_line(_InputLine(custom_id=custom_id, url=endpoint, body=msgspec.Raw(body.encode()))))


async def _insert_retry(
    database: AsyncEngine,
    store: FileStore,
    batch: BatchRow,
    file_id: str,
    num_bytes: int,
    key_id: str | None,
    expires_at: datetime,
) -> BatchRow:
    """Insert the input file and the new batch, which inherits the options of its parent."""
    batch_id = ids.new_id(ids.BATCH)
    note_ids(batch=batch_id, file=file_id)
    file = files.add_file(
        id=file_id,
        tenant_id=batch.tenant_id,
        purpose="batch",
        filename=f"{batch.id}_retry.jsonl",
        bytes=num_bytes,
        expires_at=expires_at,
    )
    inherited = ("tenant_id", "endpoint", "completion_window", "window_seconds", "output_expires_seconds",
                  "metadata_json", "table_file_id", "priority")  # fmt: skip
    statement = batches.insert_batch(
        id=batch_id,
        input_file_id=file_id,
        parent_batch_id=batch.id,
        key_id=key_id,
        mapping_json=batches.mapping_of(batch.id).scalar_subquery(),
        origin_json=current_origin().to_json(),
        **{name: getattr(batch, name) for name in inherited},
    )

    async def insert() -> BatchRow:
        async with database.begin() as connection:
            await check_open_batches(connection, batch.tenant_id)
            await connection.execute(file)
            return await statement.async_fetch_one(connection)

    async def find() -> BatchRow | None:
        async with database.connect() as connection:
            return await batches.find_batch(batch_id, batch.tenant_id).async_fetch_optional(connection)

    return await create_with_file(store, file_id, insert, find)


def _too_late(batch: BatchRow, what: str, code: str) -> ApiError:
    return bad_request(f"The batch is {batch.status}; it cannot be {what} any more.", code=code)
