"""Statements on admins' requests to load, unload and pin models: one row for each model. The clock is the database's.

A load is open until a launcher has served or refused it. An unload concerns the engines that began to load before it, so that
each launcher can act on it by itself, once or several times; a reload is both. A pin holds until it is taken back.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Delete, Float, Select, Update, cast, delete, false, func, or_, select, update
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.orm import InstrumentedAttribute

from core.states import ModelAction
from db.query import Query
from db.tables import ModelRequest

_LOADS: Final = (ModelAction.LOAD, ModelAction.RELOAD, ModelAction.PIN)
_UNLOADS: Final = (ModelAction.UNLOAD, ModelAction.RELOAD)
KEPT: Final = timedelta(hours=1)  # no launcher serves the model, or all have long unloaded it


class PendingRequest(NamedTuple):
    """The requests for a model, as seconds since they were made; `load_at` identifies the load for `finish_load`."""

    model: str
    load_at: datetime | None
    load_seconds: float | None
    unload_seconds: float | None


class ModelWish(NamedTuple):
    """A model that an admin has asked to load, and that is neither ready nor refused yet, or that an admin has pinned."""

    model: str
    has_load: bool
    is_pinned: bool


def add_request(model: str, action: ModelAction) -> Insert:
    """Insert or renew a request. An unload withdraws an open load; a load that is open and a pin keep their age."""
    is_load, is_unload, is_pin = action in _LOADS, action in _UNLOADS, action is ModelAction.PIN
    new = insert(ModelRequest).values(
        model=model,
        load_at=func.now() if is_load else None,
        unload_at=func.now() if is_unload else None,
        pinned_at=func.now() if is_pin else None,
    )
    changes = {
        "load_at": new.excluded.load_at if is_unload else func.coalesce(ModelRequest.load_at, new.excluded.load_at)
    }
    if is_unload:
        changes["unload_at"] = new.excluded.unload_at
    if is_pin:
        changes["pinned_at"] = func.coalesce(ModelRequest.pinned_at, new.excluded.pinned_at)
    elif action is ModelAction.UNPIN:
        changes["pinned_at"] = new.excluded.pinned_at
    return new.on_conflict_do_update(index_elements=[ModelRequest.model], set_=changes)


def pinned_models() -> Select[str]:
    """List the models that admins have pinned, the oldest pin first."""
    return select(ModelRequest.model).where(ModelRequest.pinned_at.is_not(None)).order_by(ModelRequest.pinned_at)


def pending_requests() -> Query[PendingRequest]:
    """List the requests that a launcher may have to act on."""
    statement = select(
        ModelRequest.model,
        ModelRequest.load_at,
        _seconds_since(ModelRequest.load_at).label("load_seconds"),
        _seconds_since(ModelRequest.unload_at).label("unload_seconds"),
    ).where(func.greatest(ModelRequest.load_at, ModelRequest.unload_at) > func.now() - KEPT)
    return Query(statement, PendingRequest)


def model_wishes() -> Query[ModelWish]:
    """List the models with an open load or a pin."""
    has_load = func.coalesce(ModelRequest.load_at > func.now() - KEPT, false())
    is_pinned = ModelRequest.pinned_at.is_not(None)
    columns = (ModelRequest.model, has_load.label("has_load"), is_pinned.label("is_pinned"))
    return Query(select(*columns).where(or_(has_load, is_pinned)), ModelWish)


def finish_load(model: str, load_at: datetime) -> Update:
    """End a load: the model is ready, or its launcher reports the reason why it is not. A later request stays open."""
    return update(ModelRequest).where(ModelRequest.model == model, ModelRequest.load_at == load_at).values(load_at=None)


def delete_old_requests() -> Delete:
    """Delete requests that are finished or older than KEPT, and no pin."""
    made_at = func.greatest(ModelRequest.load_at, ModelRequest.unload_at)
    is_old = or_(made_at.is_(None), made_at <= func.now() - KEPT)
    return delete(ModelRequest).where(is_old, ModelRequest.pinned_at.is_(None))


def _seconds_since(column: InstrumentedAttribute[datetime | None]) -> ColumnElement[float]:
    return cast(func.extract("epoch", func.now() - column), Float)
