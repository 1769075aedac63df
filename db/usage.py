"""Statements on usage: tokens of a tenant by key, model and day, counted when each job ended."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Final, Literal, NamedTuple

from sqlalchemy import literal, select

from db.query import Query, total
from db.tables import UsageDaily

Group = Literal["key", "model", "day"]

_COLUMNS: Final = {"key": UsageDaily.key_id, "model": UsageDaily.model, "day": UsageDaily.day}


class UsageRow(NamedTuple):
    """Sums of one group; `key`, `model` and `day` are None where they are no part of it."""

    key: str | None
    model: str | None
    day: date | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


def usage_between(tenant_id: str, first: date, last: date, groups: Collection[Group]) -> Query[UsageRow]:
    """Sum up whole days, both included, with one row per group."""
    shown = [
        (column if name in groups else literal(None, column.type)).label(name) for name, column in _COLUMNS.items()
    ]
    sums = (total(getattr(UsageDaily, name)).label(name) for name in UsageRow._fields[len(_COLUMNS) :])
    grouped = [_COLUMNS[name] for name in _COLUMNS if name in groups]
    statement = (
        select(*shown, *sums)
        .where(UsageDaily.tenant_id == tenant_id, UsageDaily.day.between(first, last))
        .group_by(*grouped)
        .order_by(*grouped)
    )
    return Query(statement, UsageRow)
