"""Statements on engine crashes: the requests that are suspected of them, and each crash. The clock is the database's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Delete,
    Insert,
    Interval,
    Select,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as postgres_insert

from db.query import Query, columns_of
from db.tables import EngineCrash, Quarantine

CRASH_WINDOW: Final = timedelta(minutes=10)  # crashes within it count for a model to be degraded


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineEntry:
    """A request that an engine was running when it crashed; `job_id` is the latest job with this `fingerprint`."""

    fingerprint: str
    tenant_id: str
    model: str
    endpoint: str
    job_id: str


class QuarantinedRequest(NamedTuple):
    """A request that is suspected of crashes, and with `is_blocked` refused for them."""

    fingerprint: str
    is_blocked: bool


class DegradedModel(NamedTuple):
    """A model with unexplained crashes of its engine on `worker` (host and device)."""

    model: str
    worker: str
    crashes: int


class LastCrash(NamedTuple):
    """The last crash of a model's engine on `worker` (host and device), with its reason in words."""

    model: str
    worker: str
    reason: str
    crashed_at: datetime


class QuarantineCount(NamedTuple):
    """The number of requests to a model that are blocked, or only suspects."""

    model: str
    is_blocked: bool
    requests: int


def record_crash(entry: QuarantineEntry, *, crashes: int, most: int, kept: timedelta) -> PostgresInsert:
    """Add crashes in which the request ran alone; `most` of them within `kept` block it."""
    blocked_at = func.now() if crashes >= most else None
    new = postgres_insert(Quarantine).values(**asdict(entry), crashes=crashes, blocked_at=blocked_at)
    is_old = Quarantine.crashed_at < func.now() - kept
    sum_of_crashes = case((is_old, 0), else_=Quarantine.crashes) + crashes
    changes = {
        "job_id": entry.job_id,
        "crashes": sum_of_crashes,
        "crashed_at": func.now(),
        "blocked_at": case((sum_of_crashes >= most, func.now()), else_=None),
    }
    return new.on_conflict_do_update(index_elements=[Quarantine.fingerprint], set_=changes)


def clear(fingerprint: str) -> Delete:
    """Delete a suspect that ran alone without a crash; a blocked request stays."""
    return delete(Quarantine).where(Quarantine.fingerprint == fingerprint, Quarantine.blocked_at.is_(None))


def list_quarantined(tenant_id: str, model: str, kept: timedelta) -> Query[QuarantinedRequest]:
    """List a tenant's requests to a model that crashed an engine within `kept`."""
    return Query(_LIST_QUARANTINED, QuarantinedRequest, {"of_tenant": tenant_id, "to_model": model, "kept": kept})


_LIST_QUARANTINED: Final = select(Quarantine.fingerprint, Quarantine.blocked_at.is_not(None).label("is_blocked")).where(
    Quarantine.tenant_id == bindparam("of_tenant"),
    Quarantine.model == bindparam("to_model"),
    Quarantine.crashed_at > func.now() - bindparam("kept", type_=Interval()),
)


def delete_old_entries(kept: timedelta) -> Delete:
    """Delete entries with a last crash older than `kept`."""
    return delete(Quarantine).where(Quarantine.crashed_at < func.now() - kept)


def add_engine_crash(model: str, worker: str, exit_code: int, reason: str = "") -> Insert:
    """Record the crash of an engine. `worker` names its host and device; the code is negative for a signal."""
    return insert(EngineCrash).values(model=model, worker=worker, exit_code=exit_code, reason=reason)


def last_crashes() -> Query[LastCrash]:
    """List the last crash of each model that had one lately (see `delete_engine_crashes`)."""
    statement = (
        select(*columns_of(EngineCrash, LastCrash))
        .ext(distinct_on(EngineCrash.model))
        .order_by(EngineCrash.model, EngineCrash.crashed_at.desc())
    )
    return Query(statement, LastCrash)


def unexplained_crashes(model: str, worker: str, window: timedelta) -> Select[int]:
    """Count the crashes of an engine within the window, since a request was last blocked for one."""
    of_engine = (EngineCrash.model == model, EngineCrash.worker == worker)
    return select(func.count()).select_from(EngineCrash).where(*of_engine, _is_unexplained(window))


def degraded_models(most: int, window: timedelta) -> Query[DegradedModel]:
    """List models with more than `most` unexplained crashes of an engine within the window."""
    crashes = func.count()
    statement = (
        select(EngineCrash.model, EngineCrash.worker, crashes.label("crashes"))
        .where(_is_unexplained(window))
        .group_by(EngineCrash.model, EngineCrash.worker)
        .having(crashes > most)
        .order_by(EngineCrash.model, EngineCrash.worker)
    )
    return Query(statement, DegradedModel)


def count_quarantined() -> Query[QuarantineCount]:
    """Count quarantined requests for metrics."""
    is_blocked = Quarantine.blocked_at.is_not(None)
    statement = select(Quarantine.model, is_blocked.label("is_blocked"), func.count().label("requests"))
    return Query(statement.group_by(Quarantine.model, is_blocked), QuarantineCount)


def delete_engine_crashes(kept: timedelta) -> Delete:
    """Delete crashes that are older than `kept`."""
    return delete(EngineCrash).where(EngineCrash.crashed_at < func.now() - kept)


def _is_unexplained(window: timedelta) -> ColumnElement[bool]:
    blocked_at = select(func.max(Quarantine.blocked_at)).where(Quarantine.model == EngineCrash.model).scalar_subquery()
    since = func.greatest(func.now() - window, func.coalesce(blocked_at, func.now() - literal(window)))
    return EngineCrash.crashed_at > since
