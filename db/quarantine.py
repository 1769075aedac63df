"""Statements on what ended engines: requests, known by their fingerprints, and each death. The clock is the database's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Delete, Insert, Label, Select, case, delete, exists, func, insert, literal, select
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.orm import InstrumentedAttribute

from db.tables import EngineCrash, Quarantine

CRASH_WINDOW: Final = timedelta(minutes=10)  # crashes within it count for a model to be degraded


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineEntry:
    """A request that an engine was at when it ended; `fingerprint` is what it is known by, `job_id` who asked last."""

    fingerprint: str
    tenant_id: str
    model: str
    endpoint: str
    job_id: str


def record_crash(accused: QuarantineEntry, *, crashes: int, most: int, kept: timedelta) -> PostgresInsert:
    """Add so many crashes in which it was alone; with `most` of them within `kept` it is convicted."""
    is_convicted = func.now() if crashes >= most else None
    new = postgres_insert(Quarantine).values(**_values(accused), crashes=crashes, blocked_at=is_convicted)
    is_old = Quarantine.crashed_at < func.now() - kept
    total = case((is_old, 0), else_=Quarantine.crashes) + crashes
    blocked_at = case((total >= most, func.now()), else_=None)
    update = {"job_id": accused.job_id, "crashes": total, "crashed_at": func.now(), "blocked_at": blocked_at}
    return new.on_conflict_do_update(index_elements=[Quarantine.fingerprint], set_=update)


def clear(fingerprint: str) -> Delete:
    """It was run alone, and nothing happened."""
    return delete(Quarantine).where(Quarantine.fingerprint == fingerprint, Quarantine.blocked_at.is_(None))


def accused_of(tenant_id: str, model: str, kept: timedelta) -> Select[str, bool]:
    """Fingerprints of a tenant's requests to a model that ended engines lately, and whether they are convicted."""
    return select(Quarantine.fingerprint, Quarantine.blocked_at.is_not(None)).where(
        Quarantine.tenant_id == tenant_id, Quarantine.model == model, Quarantine.crashed_at > func.now() - kept
    )


def has_accused(
    tenant_id: InstrumentedAttribute[str], model: InstrumentedAttribute[str]
) -> Label[bool]:  # columns of the statement it becomes part of
    """Is `accused_of` worth a question? It nearly never is."""
    return exists().where(Quarantine.tenant_id == tenant_id, Quarantine.model == model).label("has_accused")


def delete_old_entries(kept: timedelta) -> Delete:
    """Those whose time is over."""
    return delete(Quarantine).where(Quarantine.crashed_at < func.now() - kept)


def add_engine_crash(model: str, worker: str, exit_code: int) -> Insert:
    """An engine died. `worker` names where: its host and device; the code is negative for a signal."""
    return insert(EngineCrash).values(model=model, worker=worker, exit_code=exit_code)


def unexplained_crashes(model: str, worker: str, window: timedelta) -> Select[int]:
    """How often an engine has died within the window since a request was last convicted of it."""
    mine = (EngineCrash.model == model, EngineCrash.worker == worker)
    return select(func.count()).select_from(EngineCrash).where(*mine, _is_unexplained(window))


def degraded_models(most: int, window: timedelta) -> Select[str, str, int]:
    """Models whose engine on some worker died more than `most` times and nobody knows of what: (model, worker, crashes)."""
    count = func.count()
    return (
        select(EngineCrash.model, EngineCrash.worker, count)
        .where(_is_unexplained(window))
        .group_by(EngineCrash.model, EngineCrash.worker)
        .having(count > most)
        .order_by(EngineCrash.model, EngineCrash.worker)
    )


def count_crashes() -> Select[str, str, int]:
    """For metrics: (model, exit code, deaths) of all engines, as far as they are kept."""
    code = func.cast(EngineCrash.exit_code, Quarantine.model.type)
    return select(EngineCrash.model, code, func.count()).group_by(EngineCrash.model, code)


def count_quarantined() -> Select[str, bool, int]:
    """For metrics: (model, is convicted, requests)."""
    is_convicted = Quarantine.blocked_at.is_not(None)
    return select(Quarantine.model, is_convicted, func.count()).group_by(Quarantine.model, is_convicted)


def delete_engine_crashes(kept: timedelta) -> Delete:
    """Those nobody counts any more."""
    return delete(EngineCrash).where(EngineCrash.crashed_at < func.now() - kept)


def _is_unexplained(window: timedelta) -> Any:  # Any: a SQL condition
    convicted = select(func.max(Quarantine.blocked_at)).where(Quarantine.model == EngineCrash.model).scalar_subquery()
    since = func.greatest(func.now() - window, func.coalesce(convicted, func.now() - literal(window)))
    return EngineCrash.crashed_at > since


def _values(accused: QuarantineEntry) -> dict[str, str]:
    return {
        "fingerprint": accused.fingerprint,
        "tenant_id": accused.tenant_id,
        "model": accused.model,
        "endpoint": accused.endpoint,
        "job_id": accused.job_id,
    }
