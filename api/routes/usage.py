"""`GET /v1/usage`: tokens and requests of the tenant's keys, by key, model and day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Final, get_args

from fastapi import APIRouter, Query

from api.access.scopes import require_scopes
from api.dependencies import DatabaseDep, TenantDep
from api.schemas.usage import UsageBucket, UsagePage, UsageResult
from core.api_keys import Scope
from core.errors import bad_request
from db.usage import Group, UsageRow, usage_between

router = APIRouter(tags=["usage"], dependencies=[require_scopes(Scope.READ_ONLY)])

_DEFAULT_DAYS: Final = 30
_MOST_DAYS: Final = 366
_FIRST_DAY: Final = date(1970, 1, 1)
_LAST_DAY: Final = date(9000, 1, 1)  # the calendar ends soon after
_DAY: Final = timedelta(days=1)


@router.get("/v1/usage")
async def get_usage(
    database: DatabaseDep,
    tenant: TenantDep,
    start: Annotated[str | None, Query(description="First day, as 2026-11-24 or unix seconds.")] = None,
    end: Annotated[
        str | None, Query(description="The day after the last one, in the form of `start`; default: tomorrow.")
    ] = None,
    group_by: Annotated[str, Query(description="Any of key, model and day, separated by commas.")] = "day",
) -> UsagePage:
    """Whole days, UTC. With `day` one bucket per day, else one for the whole span."""
    groups = _groups(group_by)
    behind = _day(end, "end") if end is not None else datetime.now(UTC).date() + _DAY
    first = _day(start, "start") if start is not None else behind - _DEFAULT_DAYS * _DAY
    if not _DAY <= behind - first <= _MOST_DAYS * _DAY:
        message = f"'start' must be before 'end', by at most {_MOST_DAYS} days."
        raise bad_request(message, code="invalid_value", param="start")
    async with database.connect() as connection:
        rows = await usage_between(tenant, first, behind - _DAY, groups).async_fetch_all(connection)
    if "day" not in groups:
        return UsagePage(data=[_bucket(first, behind, rows, tenant)])
    by_day: dict[date | None, list[UsageRow]] = {}
    for row in rows:
        by_day.setdefault(row.day, []).append(row)
    days = [first + n * _DAY for n in range((behind - first).days)]
    return UsagePage(data=[_bucket(day, day + _DAY, by_day.get(day, []), tenant) for day in days])


def _groups(text: str) -> frozenset[Group]:
    groups: tuple[Group, ...] = get_args(Group)
    chosen = {part.strip() for part in text.split(",")} - {""}
    if not chosen <= {*groups}:
        raise bad_request("Invalid value for 'group_by': use key, model, day.", code="invalid_value", param="group_by")
    return frozenset(name for name in groups if name in chosen)


def _day(text: str, param: str) -> date:
    try:
        is_number = text.isascii() and text.isdigit()
        day = datetime.fromtimestamp(int(text[:12]), UTC).date() if is_number else date.fromisoformat(text)
        if not _FIRST_DAY <= day <= _LAST_DAY:
            raise ValueError
        return day
    except (ValueError, OverflowError, OSError):
        message = f"Invalid value for '{param}': use a day such as 2026-11-24, or unix seconds."
        raise bad_request(message, code="invalid_value", param=param) from None


def _bucket(first: date, behind: date, rows: Sequence[UsageRow], tenant: str) -> UsageBucket:
    results = [
        UsageResult(
            input_tokens=row.prompt_tokens,
            input_cached_tokens=row.cached_tokens,
            output_tokens=row.completion_tokens,
            num_model_requests=row.requests,
            project_id=tenant,
            api_key_id=row.key or None,
            model=row.model,
        )
        for row in rows
    ]
    return UsageBucket(start_time=_seconds(first), end_time=_seconds(behind), results=results)


def _seconds(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())
