"""Statements on the work that waits for models, and on the launchers that may load them. The clock is the database's."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, NamedTuple

from sqlalchemy import Float, Select, cast, func, select

from core.states import BatchState, EngineState, JobState
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
