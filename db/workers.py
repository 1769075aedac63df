"""Statements on worker processes: each reports itself with its heartbeat, and readiness is read from these rows.

Ages are by the database's clock: a report carries the seconds since an event, by its monotonic clock, and so do rows read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ColumnElement,
    Delete,
    Float,
    TableValuedAlias,
    Text,
    Update,
    bindparam,
    case,
    cast,
    column,
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
    "num_deaths",
    "exit_reason",
    "state",
    "warning",
    "device",
    "memory_bytes",
    "slots",
    "context_size",
    "settings_json",
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
    `device`, and `slots` of `context_size` tokens; one that answers has an `activity`, and `settings_json` if it measures them.
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
    settings_json: str | None = None
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


class Report(NamedTuple):
    """A statement with its values: `connection.execute(*report)`. The statement is built once, since its heartbeats are many."""

    statement: PostgresInsert
    values: dict[str, Any]  # Any: texts and numbers


def report_worker(report: WorkerReport) -> Report:
    """Insert or renew a worker and its engines, and delete engines that it has no more, in one round trip.

    Under the same id, another pid is a process that has just started. A report without a device leaves that as it is.
    """
    device = {} if report.device is None else asdict(report.device)
    values = {
        "given_kind": report.kind,
        "given_host": report.host,
        "given_pid": report.pid,
        "given_poll_seconds": report.poll_seconds,
        **{f"given_{name}": value for name, value in device.items()},
    }
    return Report(_worker_statement(tuple(device)), values | report_engines(report).values)


def report_engines(report: WorkerReport) -> Report:
    """Insert or renew the engines of a worker."""
    engines = [
        {
            **{name: getattr(engine, name) for name in _REPORTED},
            **(_NO_ACTIVITY if engine.activity is None else asdict(engine.activity)),
            "model": engine.model,
            "tick_seconds": engine.tick_seconds,
        }
        for engine in report.engines
    ]
    return Report(_engines_statement(), {"given_id": report.id, "given_engines": engines})


@lru_cache
def _worker_statement(device: tuple[str, ...]) -> PostgresInsert:
    given_id = bindparam("given_id", type_=Text)
    new = insert(Worker).values(
        id=given_id,
        **{
            name: bindparam(f"given_{name}", type_=Worker.__table__.c[name].type)
            for name in ("kind", "host", "pid", *device)
        },
        last_poll_at=_ago(bindparam("given_poll_seconds", type_=Float)),
    )
    is_same = Worker.pid == new.excluded.pid
    renewed = new.on_conflict_do_update(
        index_elements=[Worker.id],
        set_={
            "started_at": case((is_same, Worker.started_at), else_=func.now()),
            "pid": new.excluded.pid,
            "seen_at": func.now(),
            "last_poll_at": new.excluded.last_poll_at,
            **{name: new.excluded[name] for name in device},
        },
    )
    gone = delete(WorkerEngine).where(
        WorkerEngine.worker_id == given_id, WorkerEngine.model.not_in(select(_given_engines().c.model))
    )
    return _engines_statement().add_cte(
        renewed.returning(Worker.id).cte("renewed"), gone.returning(WorkerEngine.model).cte("gone")
    )


@lru_cache
def _engines_statement() -> PostgresInsert:
    names, given = (*_REPORTED, *_ACTIVITY), _given_engines()
    rows = select(
        bindparam("given_id", type_=Text), given.c.model, _ago(given.c.tick_seconds), *(given.c[name] for name in names)
    )
    new = insert(WorkerEngine).from_select(["worker_id", "model", "last_tick_at", *names], rows)
    return new.on_conflict_do_update(
        index_elements=[WorkerEngine.worker_id, WorkerEngine.model],
        set_={name: new.excluded[name] for name in ("last_tick_at", *names)},
    )


def _given_engines() -> TableValuedAlias:
    """The engines of a report, as rows: their number is no part of the statement."""
    table = WorkerEngine.__table__.c
    columns = [column(name, table[name].type) for name in ("model", *_REPORTED, *_ACTIVITY)]
    rows = func.json_to_recordset(bindparam("given_engines", type_=JSON))
    return rows.table_valued(*columns, column("tick_seconds", Float), name="given").render_derived(with_types=True)


def report_activity(worker_id: str, model: str, activity: EngineActivity | None) -> Update:
    """Renew the activity of one engine between two reports; does nothing before the first report."""
    is_it = (WorkerEngine.worker_id == worker_id, WorkerEngine.model == model)
    return update(WorkerEngine).where(*is_it).values(**(_NO_ACTIVITY if activity is None else asdict(activity)))


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
            WorkerEngine.settings_json,
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


def _ago(seconds: ColumnElement[float]) -> ColumnElement[datetime]:
    return func.now() - func.make_interval(0, 0, 0, 0, 0, 0, seconds)


def _seconds_since(column: InstrumentedAttribute[Any]) -> ColumnElement[float]:  # Any: a timestamp or None
    return cast(func.extract("epoch", func.now() - column), Float)
