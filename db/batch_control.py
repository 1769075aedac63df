"""Statements that steer a batch on its way: pause, resume, change."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, case, func, select, update

from core.states import FINAL_BATCH_STATES, BatchState, ShardState
from db.tables import Batch, Shard

_PAUSABLE = (BatchState.VALIDATING, BatchState.IN_PROGRESS)


def pause(batch_id: str, tenant_id: str) -> Any:  # Any: ReturningUpdate
    """No shard is claimed from here on; no row: the batch takes no lines any more."""
    return (
        update(Batch)
        .where(Batch.id == batch_id, Batch.tenant_id == tenant_id, Batch.status.in_(_PAUSABLE))
        .values(paused_at=func.coalesce(Batch.paused_at, func.now()))
        .returning(Batch)
    )


def resume(batch_id: str, tenant_id: str) -> Any:  # Any: ReturningUpdate
    """Shards may be claimed again; no row: the batch takes no lines any more."""
    was_paused = Batch.paused_at.is_not(None)
    return (
        update(Batch)
        .where(Batch.id == batch_id, Batch.tenant_id == tenant_id, Batch.status.in_(_PAUSABLE))
        .values(paused_at=None, resumed_at=case((was_paused, func.now()), else_=Batch.resumed_at))
        .returning(Batch)
    )


def open_models(batch_id: str) -> Select[str]:
    """Models that have lines of this batch left to run."""
    return select(Shard.model).where(Shard.batch_id == batch_id, Shard.state != ShardState.DONE).distinct()


def set_metadata(batch_id: str, tenant_id: str, metadata_json: str | None) -> Any:  # Any: ReturningUpdate
    """Replace the metadata, at any time."""
    return (
        update(Batch)
        .where(Batch.id == batch_id, Batch.tenant_id == tenant_id)
        .values(metadata_json=metadata_json)
        .returning(Batch)
    )


def set_urgency(
    batch_id: str, tenant_id: str, *, priority: int | None, window: tuple[str, int] | None
) -> Any:  # Any: ReturningUpdate
    """A new priority, a new window (as spelled, in seconds), or both; its end moves along if it is set already.

    No row: the batch takes no lines any more, or the new window would be over.
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
    return statement.values(**changes).returning(Batch)
