"""Look-ups of batches: the row of a tenant's batch, and its API object with counts as of now."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from api.batches.throughput import measure_throughput, with_throughput
from api.batches.waiting import waits_of, with_wait
from api.http.pagination import unix_seconds
from api.services.model_states import ModelStates
from core.errors import not_found
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

_TIMES: Final = (
    "in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at",
    "cancelled_at",
)  # fmt: skip
_NO_TOTALS: Final = RunningTotals("", 0, 0, 0, 0, 0, 0)


async def find_batch(connection: AsyncConnection, batch_id: str, tenant: str) -> BatchRow | None:
    """The row of a tenant's batch, if it exists."""
    if not is_id(batch_id):
        return None
    return await batches.find_batch(batch_id, tenant).async_fetch_optional(connection)


async def with_totals(connection: AsyncConnection, rows: list[BatchRow], states: ModelStates) -> list[BatchObject]:
    """The objects of rows; those of batches that have not ended include the counts of their shards so far, and what they
    wait for.
    """
    open_ids = [row.id for row in rows if row.status not in FINAL_BATCH_STATES]
    throughput = await measure_throughput(connection, rows)
    running = await batches.running_totals(open_ids).async_fetch_all(connection) if open_ids else []
    totals = {each.batch_id: each for each in running}
    waits = await waits_of(connection, rows, states) if open_ids else {}
    return [
        with_wait(
            with_throughput(to_batch_object(row, totals.get(row.id)), row, throughput.get(row.id)), waits.get(row.id)
        )
        for row in rows
    ]


async def existing_batch(connection: AsyncConnection, batch_id: str, tenant: str) -> BatchRow:
    """The row of a tenant's batch; raises one and the same 404 for unknown and foreign ids."""
    row = await find_batch(connection, batch_id, tenant)
    if row is None:
        raise not_found(f"There is no batch '{batch_id[:64]}'.", param="batch_id")
    return row


async def show_batch(connection: AsyncConnection, row: BatchRow, states: ModelStates) -> BatchObject:
    """The object of a row, with its counts as of now."""
    return (await with_totals(connection, [row], states))[0]


def to_batch_object(row: BatchRow, running: RunningTotals | None) -> BatchObject:
    """The API object of a row; `running` holds the sums of its shards while the batch is open.

    A batch without an `expires_at` has not begun: its window begins with its creation all the same.
    """
    _, completed, failed, prompt, completion, cached, reasoning = running or _NO_TOTALS
    usage = BatchUsage(
        input_tokens=row.prompt_tokens + prompt,
        input_tokens_details=InputTokensDetails(cached_tokens=row.cached_tokens + cached),
        output_tokens=row.completion_tokens + completion,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=row.reasoning_tokens + reasoning),
        total_tokens=row.prompt_tokens + prompt + row.completion_tokens + completion,
    )
    times = {name: unix_seconds(getattr(row, name)) for name in _TIMES}
    end_of_window = row.expires_at or row.created_at + timedelta(seconds=row.window_seconds)
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
        input_file_name=row.input_file_name,
        api_key_id=row.key_id,
        parent_batch_id=row.parent_batch_id,
        table_file_id=row.table_file_id,
        priority=row.priority,
        expires_at=unix_seconds(end_of_window),
        paused_at=unix_seconds(row.paused_at),
        **times,
    )
