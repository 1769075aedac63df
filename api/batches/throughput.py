"""How fast a batch gets on, and when it will be done: measured on its own lines, null while nothing is known.

Knows rows of `batches` and `recent_pace`. A forecast takes the lines that are left at the pace of the last ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from core.schemas.objects import BatchObject
from core.states import FINAL_BATCH_STATES, BatchState
from db.batch_requests import recent_pace
from db.batches import BatchRow


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of the last lines up to `now`."""

    lines_per_second: float
    tokens_per_second: float
    now: datetime


async def paces(connection: AsyncConnection, rows: Sequence[BatchRow]) -> dict[str, Throughput]:
    """The pace of each batch that runs and has lines to measure."""
    running = [row.id for row in rows if row.status == BatchState.IN_PROGRESS and row.paused_at is None]
    if not running:
        return {}
    measured = await recent_pace(running).async_fetch_all(connection)
    return {
        each.batch_id: Throughput(each.lines / each.seconds, each.tokens / each.seconds, each.now)
        for each in measured
        if each.seconds > 0
    }


def with_pace(batch: BatchObject, row: BatchRow, pace: Throughput | None) -> BatchObject:
    """The object with its throughput and forecast."""
    if row.status in FINAL_BATCH_STATES:
        misses = {BatchState.COMPLETED: False, BatchState.EXPIRED: True}.get(row.status)
        return batch.model_copy(update={"tokens_per_second": _overall(row), "will_miss_window": misses})
    if pace is None:
        return batch
    counts = batch.request_counts
    left = counts.total - counts.completed - counts.failed
    eta_at = int(pace.now.timestamp() + left / pace.lines_per_second)
    forecast = {
        "tokens_per_second": round(pace.tokens_per_second, 2),
        "eta_at": eta_at,
        "will_miss_window": None if batch.expires_at is None else eta_at > batch.expires_at,
    }
    return batch.model_copy(update=forecast)


def _overall(row: BatchRow) -> float | None:
    """Tokens computed per second over the whole run of a batch that has ended."""
    until = row.cancelling_at or row.finalizing_at
    tokens: int = row.prompt_tokens - row.cached_tokens + row.completion_tokens
    if row.in_progress_at is None or until is None or until <= row.in_progress_at or not tokens:
        return None
    seconds: float = (until - row.in_progress_at).total_seconds()
    return round(tokens / seconds, 2)
