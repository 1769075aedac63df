"""Statements on the time that models take to load. The clock is the database's."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import insert

from db.query import Query
from db.tables import ModelLoad

_MEAN_OF: Final = 5  # loads; older ones count less and less


class LoadTime(NamedTuple):
    """The mean of a model's last loads, in seconds."""

    model: str
    seconds: float


def record_load(model: str, host: str, device: str, seconds: float) -> PostgresInsert:
    """Add the time of a load to the mean of a model on a device."""
    new = insert(ModelLoad).values(model=model, host=host, device=device, seconds=seconds, num_loads=1)
    weight = func.least(ModelLoad.num_loads + 1, _MEAN_OF)
    return new.on_conflict_do_update(
        index_elements=[ModelLoad.model, ModelLoad.host, ModelLoad.device],
        set_={
            "seconds": ModelLoad.seconds + (new.excluded.seconds - ModelLoad.seconds) / weight,
            "num_loads": ModelLoad.num_loads + 1,
            "loaded_at": func.now(),
        },
    )


def load_times_of_device(host: str, device: str) -> Query[LoadTime]:
    """List the times of all models that were ever loaded on a device."""
    statement = select(ModelLoad.model, ModelLoad.seconds).where(ModelLoad.host == host, ModelLoad.device == device)
    return Query(statement, LoadTime)


def load_times(models: list[str]) -> Query[LoadTime]:
    """List the times of these models, each the shortest of all devices."""
    shortest = func.min(ModelLoad.seconds).label("seconds")
    return Query(
        select(ModelLoad.model, shortest).where(ModelLoad.model.in_(models)).group_by(ModelLoad.model), LoadTime
    )
