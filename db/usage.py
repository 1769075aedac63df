"""Statements on usage: tokens of a tenant by key, model and day, as they were counted when each job ended."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Any, Final, Literal

from sqlalchemy import Select, func, literal, select

from db.tables import UsageDaily

Group = Literal["key", "model", "day"]

_COLUMNS: Final = {"key": UsageDaily.key_id, "model": UsageDaily.model, "day": UsageDaily.day}


def usage_between(tenant_id: str, first: date, last: date, groups: Collection[Group]) -> Select[Any]:
    """Sums over whole days, both included, one row per group: key, model and day (NULL where not asked for), then counts."""
    shown = [
        (column if name in groups else literal(None, column.type)).label(name) for name, column in _COLUMNS.items()
    ]
    sums = (
        func.sum(column).label(name)
        for name, column in (
            ("requests", UsageDaily.requests),
            ("prompt_tokens", UsageDaily.prompt_tokens),
            ("completion_tokens", UsageDaily.completion_tokens),
            ("cached_tokens", UsageDaily.cached_tokens),
        )
    )
    grouped = [_COLUMNS[name] for name in _COLUMNS if name in groups]
    query = select(*shown, *sums).where(UsageDaily.tenant_id == tenant_id, UsageDaily.day.between(first, last))
    return query.group_by(*grouped).order_by(*grouped)
