"""Statements on the work that waits for models, and on the launchers that may load them. The clock is the database's."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Executable, Float, ScalarSelect, Select, cast, func, select

from core.states import BatchState, EngineState, JobState
from db.model_requests import PendingRequest, pending_requests, pinned_models
from db.query import Query
from db.shards import is_claimable
from db.tables import Batch, Job, Shard, Worker, WorkerEngine

_RESERVATION_LOCK: Final = 727_003


class WaitingChats(NamedTuple):
    """A model that live jobs wait for, and the age of the oldest of them in seconds."""

    model: str
    seconds: float


class WaitingShards(NamedTuple):
    """A model with shards to take, the highest priority of their batches, and the number of these shards."""

    model: str
    priority: int
    shards: int


class OtherEngine(NamedTuple):
    """The engine of a model at another launcher."""

    launcher: str
    model: str
    state: EngineState


class Look(NamedTuple):
    """What waits, and the other launchers; `pins` are the models that admins have pinned, the oldest pin first."""

    chats: list[WaitingChats]
    shards: list[WaitingShards]
    requests: list[PendingRequest]
    pins: list[str]
    others: list[OtherEngine]


class LookStatement:
    """One statement that reads a Look: every launcher executes it every second, so it is one round trip and built once."""

    def __init__(self, launcher: str, silence: timedelta) -> None:
        self._statement = select(
            _json_rows(waiting_chats().statement),
            _json_rows(waiting_shards().statement),
            _json_rows(pending_requests().statement),
            _json_rows(pinned_models()),
            _json_rows(other_engines(launcher, silence).statement),
        )

    def fetch(self, connection: Connection) -> Look:
        """Look now."""
        chats, shards, requests, pins, others = (rows or [] for rows in connection.execute(self._statement).one())
        return Look(
            chats=[WaitingChats(**row) for row in chats],
            shards=[WaitingShards(**row) for row in shards],
            requests=[PendingRequest(**{**row, "load_at": _time(row["load_at"])}) for row in requests],
            pins=[row["model"] for row in pins],
            others=[OtherEngine(**{**row, "state": EngineState(row["state"])}) for row in others],
        )


def _json_rows(statement: Executable) -> ScalarSelect[Any]:  # Any: a list of objects; None without rows
    assert isinstance(statement, Select)
    rows = statement.subquery()
    return select(func.json_agg(func.row_to_json(rows.table_valued()))).scalar_subquery()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def waiting_chats() -> Query[WaitingChats]:
    """List the models that live jobs are queued for."""
    age = cast(func.extract("epoch", func.now() - func.min(Job.created_at)), Float)
    is_waiting = (Job.state == JobState.QUEUED, Job.batch_id.is_(None))
    return Query(select(Job.model, age.label("seconds")).where(*is_waiting).group_by(Job.model), WaitingChats)


def waiting_shards() -> Query[WaitingShards]:
    """List the models with shards to take."""
    statement = (
        select(Shard.model, func.max(Batch.priority).label("priority"), func.count().label("shards"))
        .join(Batch, Batch.id == Shard.batch_id)
        .where(is_claimable(), Batch.status == BatchState.IN_PROGRESS, Batch.paused_at.is_(None))
        .group_by(Shard.model)
    )
    return Query(statement, WaitingShards)


def other_engines(launcher: str, silence: timedelta) -> Query[OtherEngine]:
    """List the engines of all other launchers that have reported within `silence`."""
    statement = (
        select(WorkerEngine.worker_id.label("launcher"), WorkerEngine.model, WorkerEngine.state)
        .join(Worker, Worker.id == WorkerEngine.worker_id)
        .where(
            Worker.kind == "launcher",
            Worker.id != launcher,
            Worker.seen_at > func.now() - silence,
            WorkerEngine.state.is_not(None),
        )
    )
    return Query(statement, OtherEngine)


def models_out_of_memory(silence: timedelta) -> Select[str]:
    """List the models that launchers have reported within `silence`, none of them as ready: a ticket would only wait."""
    return (
        select(WorkerEngine.model)
        .join(Worker, Worker.id == WorkerEngine.worker_id)
        .where(Worker.kind == "launcher", Worker.seen_at > func.now() - silence, WorkerEngine.state.is_not(None))
        .group_by(WorkerEngine.model)
        .having(func.bool_and(WorkerEngine.state != EngineState.READY))
    )


def lock_reservations() -> Select[None]:
    """Let one launcher at a time decide what it loads, until its transaction ends."""
    return select(func.pg_advisory_xact_lock(_RESERVATION_LOCK))
