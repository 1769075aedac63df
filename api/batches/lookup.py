"""Look-ups of batches: the row of a tenant's batch, and its API object with counts as of now."""

from __future__ import annotations

import json
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from api.batches.throughput import paces, with_pace
from api.http.pagination import unix_seconds
from core.errors import ApiError, not_found
from core.ids import is_id
from core.schemas.objects import (
    BatchErrors,
    BatchObject,
    BatchUsage,
    InputTokensDetails,
    OutputTokensDetails,
    RequestCounts,
)
from core.states import FINAL_BATCH_STATES
from db import batches
from db.batches import BatchRow, RunningTotals

_MOMENTS: Final = (
    "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
    "cancelled_at",
)  # fmt: skip


_NOTHING: Final = RunningTotals("", 0, 0, 0, 0, 0, 0)


async def find_batch(connection: AsyncConnection, batch_id: str, tenant: str) -> BatchRow | None:
    """A batch of this tenant, if there is one."""
    if not is_id(batch_id):
        return None
    return await batches.find_batch(batch_id, tenant).async_fetch_optional(connection)


async def with_totals(connection: AsyncConnection, rows: list[BatchRow]) -> list[BatchObject]:
    """Batches that have not ended get what their shards counted so far."""
    open_ids = [row.id for row in rows if row.status not in FINAL_BATCH_STATES]
    pace = await paces(connection, rows)
    running = await batches.running_totals(open_ids).async_fetch_all(connection) if open_ids else []
    totals = {each.batch_id: each for each in running}
    shown = [to_batch_object(row, totals.get(row.id)) for row in rows]
    return [with_pace(batch, row, pace.get(batch.id)) for batch, row in zip(shown, rows, strict=True)]


async def existing_batch(connection: AsyncConnection, batch_id: str, tenant: str) -> BatchRow:
    """A batch of this tenant, or the 404 that unknown and foreign ids share."""
    row = await find_batch(connection, batch_id, tenant)
    if row is None:
        raise missing_batch(batch_id)
    return row


async def show_batch(connection: AsyncConnection, row: BatchRow) -> BatchObject:
    """The object of a row, with its counts as of now."""
    return (await with_totals(connection, [row]))[0]


def to_batch_object(row: BatchRow, running: RunningTotals | None) -> BatchObject:
    """The API object of a row; `running` holds the sums of its shards while the batch is open."""
    _, completed, failed, prompt, completion, cached, reasoning = running or _NOTHING
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


def missing_batch(batch_id: str) -> ApiError:
    """The 404 of a batch that is not there."""
    return not_found(f"There is no batch '{batch_id[:64]}'.", param="batch_id")
