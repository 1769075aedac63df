"""Statements that change a running batch: pause, resume, priority, window, metadata."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Select, case, func, select, update

from core.states import FINAL_BATCH_STATES, BatchState, ShardState
from db.batches import BATCH, BatchRow
from db.query import Query
from db.tables import Batch, Shard

_PAUSABLE: Final = (BatchState.VALIDATING, BatchState.IN_PROGRESS)


def pause(batch_id: str, tenant_id: str) -> Query[BatchRow]:
    """Let no more shards be claimed. No row: the batch is past running lines."""
    statement = (
        update(Batch)
        .where(Batch.id == batch_id, Batch.tenant_id == tenant_id, Batch.status.in_(_PAUSABLE))
        .values(paused_at=func.coalesce(Batch.paused_at, func.now()))
        .returning(*BATCH)
    )
    return Query(statement, BatchRow)


def resume(batch_id: str, tenant_id: str) -> Query[BatchRow]:
    """Let shards be claimed again. No row: the batch is past running lines."""
    was_paused = Batch.paused_at.is_not(None)
    statement = (
        update(Batch)
        .where(Batch.id == batch_id, Batch.tenant_id == tenant_id, Batch.status.in_(_PAUSABLE))
        .values(paused_at=None, resumed_at=case((was_paused, func.now()), else_=Batch.resumed_at))
        .returning(*BATCH)
    )
    return Query(statement, BatchRow)


def open_models(batch_id: str) -> Select[str]:
    """List the models with open shards of this batch."""
    return select(Shard.model).where(Shard.batch_id == batch_id, Shard.state != ShardState.DONE).distinct()


def set_metadata(batch_id: str, tenant_id: str, metadata_json: str | None) -> Query[BatchRow]:
    """Replace the metadata, in any state."""
    statement = (
        update(Batch)
        .where(Batch.id == batch_id, Batch.tenant_id == tenant_id)
        .values(metadata_json=metadata_json)
        .returning(*BATCH)
    )
    return Query(statement, BatchRow)


def set_urgency(
    batch_id: str, tenant_id: str, *, priority: int | None, window: tuple[str, int] | None
) -> Query[BatchRow]:
    """Set the priority, the window (its text and its seconds), or both; an `expires_at` that is set moves with it.

    No row: the batch is past running lines, or the new window would be over.
    """
    changes: dict[str, Any] = {}  # Any: the columns' own types
    statement = update(Batch).where(
        Batch.id == batch_id, Batch.tenant_id == tenant_id, Batch.status.not_in(FINAL_BATCH_STATES)
    )
    if priority is not None:
        changes["priority"] = priority
    if window is not None:
        spelled, seconds = window
        ends_at = Batch.created_at + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
        statement = statement.where(ends_at > func.now(), Batch.status.in_(_PAUSABLE))
        changes |= {
            "completion_window": spelled,
            "window_seconds": seconds,
            "expires_at": case((Batch.expires_at.is_not(None), ends_at), else_=None),
        }
    return Query(statement.values(**changes).returning(*BATCH), BatchRow)
