"""Statements on the processes that work: each reports itself with its heartbeat, and readiness is read from these rows.

Ages are the database's own: a reporter says how long ago something was, by its monotonic clock, and readers are told seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Delete, Float, Select, case, cast, delete, func, select
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import insert

from db.tables import Counter, Worker, WorkerEngine

KEPT_SILENT: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """An engine as its worker sees it. `tick_seconds` ago its loop turned; None: never, or this worker does not hear it.

    `num_deaths` are those since the worker started; `exit_reason` are about the latest, and hold nothing of a request.
    """

    model: str
    tick_seconds: float | None = None
    num_deaths: int = 0
    exit_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """A process. `poll_seconds` ago it last looked for work itself and was answered; None: not yet."""

    id: str
    kind: str
    host: str
    pid: int
    poll_seconds: float | None = None
    engines: Sequence[EngineReport] = ()


def report_worker(report: WorkerReport) -> PostgresInsert:
    """It is there. A process that takes the place of another one under the same id has just started."""
    new = insert(Worker).values(
        id=report.id, kind=report.kind, host=report.host, pid=report.pid, last_poll_at=_ago(report.poll_seconds)
    )
    is_same = Worker.pid == new.excluded.pid
    return new.on_conflict_do_update(
        index_elements=[Worker.id],
        set_={
            "started_at": case((is_same, Worker.started_at), else_=func.now()),
            "pid": new.excluded.pid,
            "seen_at": func.now(),
            "last_poll_at": new.excluded.last_poll_at,
        },
    )


def report_engines(report: WorkerReport) -> PostgresInsert:
    """Its engines, of which there is at least one."""
    new = insert(WorkerEngine).values(
        [
            {
                "worker_id": report.id,
                "model": engine.model,
                "last_tick_at": _ago(engine.tick_seconds),
                "num_deaths": engine.num_deaths,
                "exit_reason": engine.exit_reason,
            }
            for engine in report.engines
        ]
    )
    told = ("last_tick_at", "num_deaths", "exit_reason")
    return new.on_conflict_do_update(
        index_elements=[WorkerEngine.worker_id, WorkerEngine.model], set_={name: new.excluded[name] for name in told}
    )


def remove_worker(worker_id: str) -> Delete:
    """It stopped in order."""
    return delete(Worker).where(Worker.id == worker_id)


def remove_predecessors(slot: str) -> Delete:
    """They died without a word, and somebody has taken their place."""
    return delete(Worker).where(Worker.id.startswith(slot, autoescape=True))


def delete_silent_workers() -> Delete:
    """Of those that died without a word it is known for a while that they were there."""
    return delete(Worker).where(Worker.seen_at < func.now() - KEPT_SILENT)


def list_workers() -> Any:  # Any: a Select of the fields of `core.readiness.WorkerSeen`
    """Every process with each of its engines, those heard of last first."""
    return (
        select(
            Worker.id,
            Worker.kind,
            Worker.host,
            Worker.pid,
            _seconds_since(Worker.started_at).label("started_seconds"),
            _seconds_since(Worker.seen_at).label("seen_seconds"),
            _seconds_since(Worker.last_poll_at).label("poll_seconds"),
            WorkerEngine.model,
            _seconds_since(WorkerEngine.last_tick_at).label("tick_seconds"),
            WorkerEngine.num_deaths,
            WorkerEngine.exit_reason,
        )
        .outerjoin(WorkerEngine, WorkerEngine.worker_id == Worker.id)
        .order_by(Worker.seen_at.desc(), Worker.id, WorkerEngine.model)
    )


def add_counts(counts: Mapping[tuple[str, str], int]) -> PostgresInsert:
    """Raise counters by (name, model), of which there is at least one. Sorted, so that two reporters never deadlock."""
    rows = [{"name": name, "model": model, "value": value} for (name, model), value in sorted(counts.items())]
    new = insert(Counter).values(rows)
    return new.on_conflict_do_update(
        index_elements=[Counter.name, Counter.model], set_={"value": Counter.value + new.excluded.value}
    )


def read_counts() -> Select[str, str, int]:
    """(name, model, value) of every counter."""
    return select(Counter.name, Counter.model, Counter.value)


def _ago(seconds: float | None) -> Any:  # Any: a SQL expression
    return None if seconds is None else func.now() - timedelta(seconds=seconds)


def _seconds_since(column: Any) -> Any:  # Any: a column of timestamps; a SQL expression
    return cast(func.extract("epoch", func.now() - column), Float)
