"""Timeline of a batch: lines and tokens in equal parts of the time in which it ran."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from api.schemas.batch_extensions import BatchTimeline, TimelineBucket
from db import batch_requests
from db.batch_requests import Bucket
from db.batches import BatchRow

_DAY: Final = 86400
# lengths that stay the same for a while as a batch runs, so that a chart of it does not jump
_LENGTHS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)


async def read_timeline(connection: AsyncConnection, batch: BatchRow, points: int) -> BatchTimeline:
    """At most `points` buckets from the start of the lines to their end, or now; none before lines run."""
    begun_at = batch.in_progress_at
    if begun_at is None:
        return BatchTimeline(id=batch.id, status=str(batch.status), seconds=0, data=[])
    ended_at = batch.finalizing_at or batch.cancelling_at or batch.expired_at or datetime.now(UTC)
    span = max((ended_at - begun_at).total_seconds(), 0.0)
    seconds = bucket_seconds(span, points)
    num_buckets = min(int(span // seconds) + 1, points)
    rows = await batch_requests.timeline(batch.id, begun_at, seconds, num_buckets).async_fetch_all(connection)
    counts = {row.number: row for row in rows}
    data = []
    for number in range(num_buckets):
        _, completed, failed, prompt, completion = counts.get(number, Bucket(number, 0, 0, 0, 0))
        at = round(begun_at.timestamp() + number * seconds, 3)
        data.append(
            TimelineBucket(
                at=at,
                seconds=seconds,
                completed=completed,
                failed=failed,
                input_tokens=prompt,
                output_tokens=completion,
            )
        )
    return BatchTimeline(id=batch.id, status=str(batch.status), seconds=seconds, data=data)


def bucket_seconds(span: float, points: int) -> float:
    """The shortest usual length of which `points` cover a span; whole days beyond half a day."""
    least = span / points
    return next((each for each in _LENGTHS if each >= least), math.ceil(least / _DAY) * _DAY)
