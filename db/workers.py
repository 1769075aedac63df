"""Statements on worker processes: each reports itself with its heartbeat, and readiness is read from these rows.

Ages are by the database's clock: a report carries the seconds since an event, by its monotonic clock, and so do rows read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Delete,
    Float,
    Text,
    Update,
    case,
    cast,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import aggregate_order_by, insert
from sqlalchemy.orm import InstrumentedAttribute

from core.readiness import WorkerSeen
from core.states import EngineState
from db.query import Query, columns_of
from db.tables import Counter, Worker, WorkerEngine

KEPT_SILENT: Final = timedelta(hours=1)
_REPORTED: Final = (
    "last_tick_at",
    "num_deaths",
    "exit_reason",
    "state",
    "warning",
    "device",
    "memory_bytes",
    "slots",
    "context_size",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineActivity:
    """The work of an engine now, by its last tick, and its tokens since it started; see `engine.process.protocol.Tick`."""

    num_running: int = 0
    num_waiting: int = 0
    num_embeddings: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_per_second: float = 0.0
    output_tokens_per_second: float = 0.0
    kv_tokens: int = 0
    kv_reusable_tokens: int = 0
    kv_total_tokens: int = 0


_ACTIVITY: Final = tuple(each.name for each in fields(EngineActivity))
_NO_ACTIVITY: Final = dict.fromkeys(_ACTIVITY)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """An engine as its worker sees it. Its loop turned `tick_seconds` ago; None: never, or this worker gets no ticks.

    `num_deaths` counts exits since the worker started; `exit_reason` describes the one for which it does not serve now,
    without text of a request. `warning` is the engine's remark on the model. An engine in memory has `memory_bytes` of its
    `device`, and `slots` of `context_size` tokens; one that answers has an `activity`.
    """

    model: str
    tick_seconds: float | None = None
    num_deaths: int = 0
    exit_reason: str | None = None
    state: EngineState | None = None
    warning: str | None = None
    device: str | None = None
    memory_bytes: int | None = None
    slots: int | None = None
    context_size: int | None = None
    activity: EngineActivity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """The device of a launcher, with its memory as it is now; None where the system does not report it.

    Models may have `budget_bytes` of it together; None is no limit.
    """

    device: str
    card: str = ""
    total_bytes: int | None = None
    free_bytes: int | None = None
    budget_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """A worker process. The database answered its last poll for work `poll_seconds` ago; None: not yet."""

    id: str
    kind: str
    host: str
    pid: int
    poll_seconds: float | None = None
    engines: Sequence[EngineReport] = ()
    device: DeviceReport | None = None


class DeviceSeen(NamedTuple):
    """A device as its launcher reported it `seen_seconds` ago; `engine_bytes` is what the models on it need."""

    host: str
    device: str
    card: str | None
    total_bytes: int | None
    free_bytes: int | None
    budget_bytes: int | None
    engine_bytes: int
    models: list[str]
    seen_seconds: float


class CounterRow(NamedTuple):
    """The value of a counter; `model` is empty for one that is not of a model."""

    name: str
    model: str
    value: int


def report_worker(report: WorkerReport) -> PostgresInsert:
    """Insert or renew a worker. Under the same id, another pid is a process that has just started."""
    device = {} if report.device is None else asdict(report.device)
    new = insert(Worker).values(
        id=report.id,
        kind=report.kind,
        host=report.host,
        pid=report.pid,
        last_poll_at=_ago(report.poll_seconds),
        **device,
    )
    is_same = Worker.pid == new.excluded.pid
    return new.on_conflict_do_update(
        index_elements=[Worker.id],
        set_={
            "started_at": case((is_same, Worker.started_at), else_=func.now()),
            "pid": new.excluded.pid,
            "seen_at": func.now(),
            "last_poll_at": new.excluded.last_poll_at,
            **{name: new.excluded[name] for name in device},
        },
    )


def report_engines(report: WorkerReport) -> PostgresInsert:
    """Insert or renew the engines of a worker, of which there is at least one."""
    new = insert(WorkerEngine).values(
        [
            {
                "worker_id": report.id,
                "model": engine.model,
                "last_tick_at": _ago(engine.tick_seconds),
                "num_deaths": engine.num_deaths,
                "exit_reason": engine.exit_reason,
                "state": engine.state,
                "warning": engine.warning,
                "device": engine.device,
                "memory_bytes": engine.memory_bytes,
                "slots": engine.slots,
                "context_size": engine.context_size,
                **_activity_values(engine.activity),
            }
            for engine in report.engines
        ]
    )
    return new.on_conflict_do_update(
        index_elements=[WorkerEngine.worker_id, WorkerEngine.model],
        set_={name: new.excluded[name] for name in (*_REPORTED, *_ACTIVITY)},
    )


def report_activity(worker_id: str, model: str, activity: EngineActivity | None) -> Update:
    """Renew the activity of one engine between two reports; does nothing before the first report."""
    is_it = (WorkerEngine.worker_id == worker_id, WorkerEngine.model == model)
    return update(WorkerEngine).where(*is_it).values(**_activity_values(activity))


def remove_other_engines(report: WorkerReport) -> Delete:
    """Delete the engines that a worker does not have any more."""
    models = [engine.model for engine in report.engines]
    return delete(WorkerEngine).where(WorkerEngine.worker_id == report.id, WorkerEngine.model.not_in(models))


def remove_worker(worker_id: str) -> Delete:
    """Delete a worker that has stopped in order."""
    return delete(Worker).where(Worker.id == worker_id)


def remove_predecessors(slot: str) -> Delete:
    """Delete workers that ended in a slot which another process has taken."""
    return delete(Worker).where(Worker.id.startswith(slot, autoescape=True))


def delete_silent_workers() -> Delete:
    """Delete workers that have been silent for longer than KEPT_SILENT."""
    return delete(Worker).where(Worker.seen_at < func.now() - KEPT_SILENT)


def list_workers() -> Query[WorkerSeen]:
    """List every worker with each of its engines, the latest heartbeat first."""
    statement = (
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
            WorkerEngine.state,
            WorkerEngine.warning,
            WorkerEngine.device,
            WorkerEngine.memory_bytes,
            WorkerEngine.slots,
            WorkerEngine.context_size,
            *(getattr(WorkerEngine, name).label(name) for name in _ACTIVITY),
        )
        .outerjoin(WorkerEngine, WorkerEngine.worker_id == Worker.id)
        .order_by(Worker.seen_at.desc(), Worker.id, WorkerEngine.model)
    )
    return Query(statement, WorkerSeen)


def list_devices() -> Query[DeviceSeen]:
    """List the devices of launchers with the models in their memory, by host and name."""
    loaded = WorkerEngine.state.in_((EngineState.LOADING, EngineState.READY))
    models = func.array_agg(aggregate_order_by(WorkerEngine.model, WorkerEngine.model)).filter(loaded)
    statement = (
        select(
            Worker.host,
            Worker.device,
            Worker.card,
            Worker.total_bytes,
            Worker.free_bytes,
            Worker.budget_bytes,
            cast(func.coalesce(func.sum(WorkerEngine.memory_bytes), 0), BigInteger).label("engine_bytes"),
            func.coalesce(models, cast([], ARRAY(Text))).label("models"),
            _seconds_since(Worker.seen_at).label("seen_seconds"),
        )
        .outerjoin(WorkerEngine, WorkerEngine.worker_id == Worker.id)
        .where(Worker.device.is_not(None))
        .group_by(Worker.id)
        .order_by(Worker.host, Worker.device, Worker.seen_at.desc())
    )
    return Query(statement, DeviceSeen)


def add_counts(counts: Mapping[tuple[str, str], int]) -> PostgresInsert:
    """Raise counters by (name, model), of which there is at least one. Sorted, so that two reports never deadlock."""
    rows = [{"name": name, "model": model, "value": value} for (name, model), value in sorted(counts.items())]
    new = insert(Counter).values(rows)
    return new.on_conflict_do_update(
        index_elements=[Counter.name, Counter.model], set_={"value": Counter.value + new.excluded.value}
    )


def read_counts() -> Query[CounterRow]:
    """List all counters."""
    return Query(select(*columns_of(Counter, CounterRow)), CounterRow)


def _activity_values(activity: EngineActivity | None) -> dict[str, Any]:  # Any: numbers or None
    return _NO_ACTIVITY if activity is None else asdict(activity)


def _ago(seconds: float | None) -> ColumnElement[datetime] | None:
    return None if seconds is None else func.now() - timedelta(seconds=seconds)


def _seconds_since(column: InstrumentedAttribute[Any]) -> ColumnElement[float]:  # Any: a timestamp or None
    return cast(func.extract("epoch", func.now() - column), Float)
