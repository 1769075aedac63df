"""Statements on admins' requests to load and unload models: one row for each model. The clock is the database's.

A load is open until a launcher has served or refused it. An unload concerns the engines that began to load before it, so that
each launcher can act on it by itself, once or several times; a reload is both.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Delete, Float, Select, Update, cast, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.orm import InstrumentedAttribute

from core.states import ModelAction
from db.query import Query
from db.tables import ModelRequest

KEPT: Final = timedelta(hours=1)  # no launcher serves the model, or all have long unloaded it


class PendingRequest(NamedTuple):
    """The requests for a model, as seconds since they were made; `load_at` identifies the load for `finish_load`."""

    model: str
    load_at: datetime | None
    load_seconds: float | None
    unload_seconds: float | None


def add_request(model: str, action: ModelAction) -> Insert:
    """Insert or renew a request. An unload withdraws an open load; a load that is open keeps its age."""
    is_load, is_unload = action is not ModelAction.UNLOAD, action is not ModelAction.LOAD
    new = insert(ModelRequest).values(
        model=model, load_at=func.now() if is_load else None, unload_at=func.now() if is_unload else None
    )
    changes = {"unload_at": new.excluded.unload_at} if is_unload else {}
    load_at = new.excluded.load_at if is_unload else func.coalesce(ModelRequest.load_at, new.excluded.load_at)
    return new.on_conflict_do_update(index_elements=[ModelRequest.model], set_={"load_at": load_at, **changes})


def pending_requests() -> Query[PendingRequest]:
    """List the requests that a launcher may have to act on."""
    statement = select(
        ModelRequest.model,
        ModelRequest.load_at,
        _seconds_since(ModelRequest.load_at).label("load_seconds"),
        _seconds_since(ModelRequest.unload_at).label("unload_seconds"),
    ).where(func.greatest(ModelRequest.load_at, ModelRequest.unload_at) > func.now() - KEPT)
    return Query(statement, PendingRequest)


def open_loads() -> Select[str]:
    """List the models that an admin has asked to load, and that are neither ready nor refused yet."""
    return select(ModelRequest.model).where(ModelRequest.load_at > func.now() - KEPT)


def finish_load(model: str, load_at: datetime) -> Update:
    """End a load: the model is ready, or its launcher reports the reason why it is not. A later request stays open."""
    return update(ModelRequest).where(ModelRequest.model == model, ModelRequest.load_at == load_at).values(load_at=None)


def delete_old_requests() -> Delete:
    """Delete requests that are finished or older than KEPT."""
    made_at = func.greatest(ModelRequest.load_at, ModelRequest.unload_at)
    return delete(ModelRequest).where(or_(made_at.is_(None), made_at <= func.now() - KEPT))


def _seconds_since(column: InstrumentedAttribute[datetime | None]) -> ColumnElement[float]:
    return cast(func.extract("epoch", func.now() - column), Float)
