"""Trace of a batch: the work of clerks on it, and its own span from its creation to its end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from core.queue.names import CLERK_QUEUE
from core.states import BatchState
from core.telemetry import names, tracing
from core.telemetry.names import Attributes
from core.telemetry.origin import Origin
from db.batches import BatchRow

if TYPE_CHECKING:
    from core.telemetry.sdk import Span


def batch_work(verb: str, batch: BatchRow) -> AbstractContextManager[Span | None]:
    """Put the ids of a batch into all log lines of this thread, and into a span of what a clerk does with it."""
    origin = tracing.batch_origin(batch.id, Origin.from_json(batch.origin_json))
    attributes = {names.MESSAGING_DESTINATION: CLERK_QUEUE, names.BATCH: batch.id, names.TENANT: batch.tenant_id}
    return tracing.work(f"{verb} batch", origin, attributes=attributes, batch=batch.id)


def batch_ended(batch: BatchRow, status: BatchState, totals: Mapping[str, int]) -> None:
    """Record the span of a batch that has ended with this status; call it once, after the commit."""
    counts: Attributes = {
        names.LINES: totals.get("lines", 0),
        names.LINES_FAILED: totals.get("lines_failed", 0),
        names.INPUT_TOKENS: totals.get("prompt_tokens", 0),
        names.OUTPUT_TOKENS: totals.get("completion_tokens", 0),
    }
    model: Attributes = {names.REQUEST_MODEL: batch.model} if batch.model else {}
    attributes: Attributes = {names.STATE: str(status), names.TENANT: batch.tenant_id, **model, **counts}
    error = "invalid_file" if status is BatchState.FAILED else ""
    tracing.record_batch(batch.id, Origin.from_json(batch.origin_json), batch.created_at, attributes, error)
