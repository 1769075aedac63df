"""Throughput of a batch and forecast of its end, measured on its last lines; null without a measurement."""

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
    """Measured on the last lines up to `now`."""

    lines_per_second: float
    tokens_per_second: float
    now: datetime


async def measure_throughput(connection: AsyncConnection, rows: Sequence[BatchRow]) -> dict[str, Throughput]:
    """The throughput of each batch that runs and has lines to measure, by its id."""
    running = [row.id for row in rows if row.status == BatchState.IN_PROGRESS and row.paused_at is None]
    if not running:
        return {}
    measured = await recent_pace(running).async_fetch_all(connection)
    return {
        each.batch_id: Throughput(each.lines / each.seconds, each.tokens / each.seconds, each.now)
        for each in measured
        if each.seconds > 0
    }


def with_throughput(batch: BatchObject, row: BatchRow, throughput: Throughput | None) -> BatchObject:
    """The object with its throughput and forecast, which assumes that the lines left are as fast as the last ones."""
    if row.status in FINAL_BATCH_STATES:
        misses = {BatchState.COMPLETED: False, BatchState.EXPIRED: True}.get(row.status)
        return batch.model_copy(update={"tokens_per_second": _overall(row), "will_miss_window": misses})
    if throughput is None:
        return batch
    counts = batch.request_counts
    left = counts.total - counts.completed - counts.failed
    eta_at = int(throughput.now.timestamp() + left / throughput.lines_per_second)
    forecast = {
        "tokens_per_second": round(throughput.tokens_per_second, 2),
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
