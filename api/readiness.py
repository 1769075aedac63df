"""Is this service able to work? What each thing that is needed says of itself, and what to do where it is not well.

A model is ready when a chat and a batch worker of it have lately looked for work, and heard its engine's loop turn. That is
read from the workers' own reports in the database, so it holds with the broker dead, and a worker that lives but does
nothing is not taken for one that works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from db import workers
from db.schema import current_version, needed_version
from db.workers import WorkerSeen

if TYPE_CHECKING:
    from api.state import ApiState

_ANSWER_SECONDS: Final = 2.0
_CONSUMERS: Final = ("chat", "batch")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is needed; without a message all is well."""

    name: str
    message: str = ""
    advice: str = ""


async def look(state: ApiState) -> list[Check]:
    """Every check; takes a few seconds at most, whatever hangs."""
    database, queue = await asyncio.gather(_database(state), _queue(state))
    return [*database, queue]


def degraded_models() -> dict[str, str]:
    """Models that are served, but not as they should be: name -> why. Whoever opens a circuit adds it here."""
    return {}


async def _database(state: ApiState) -> list[Check]:
    """The database, its schema, and what its rows say of workers."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS), state.database.connect() as connection:
            await connection.execute(text("SELECT 1"))
            have, needed = await connection.run_sync(current_version), needed_version()
            if have != needed:
                return [Check("database"), _wrong_schema(have, needed)]
            rows = (await connection.execute(workers.list_workers())).mappings().all()
    except (SQLAlchemyError, OSError) as error:  # TimeoutError is one
        advice = "Start it, or look at its log. Nothing that was accepted is lost meanwhile."
        return [Check("database", f"does not answer ({type(error).__name__})", advice)]
    seen = [WorkerSeen(**row) for row in rows]
    return [
        Check("database"),
        Check("schema"),
        *check_workers(seen, state.catalog.names(), state.settings.silence_seconds),
    ]


def _wrong_schema(have: str | None, needed: str) -> Check:
    advice = "Run `millrace db upgrade`, or start the version of Millrace that fits the database."
    return Check("schema", f"is {have}, this api needs {needed}", advice)


async def _queue(state: ApiState) -> Check:
    advice = "Start it, or look at its log. Batches go on without it; chats are refused until it is back."
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await state.relay.client.ping()
    except (RedisError, OSError) as error:
        return Check("queue", f"does not answer ({type(error).__name__})", advice)
    return Check("queue") if state.relay.is_connected else Check("queue", "events do not arrive yet", advice)


def check_workers(seen: Sequence[WorkerSeen], models: Sequence[str], silence_seconds: float) -> list[Check]:
    """Of the clerk, and of each model."""
    degraded = degraded_models()
    clerks = [worker for worker in seen if worker.kind == "clerk"]
    return [
        _clerk(clerks, silence_seconds),
        *(_model(model, [w for w in seen if w.model == model], silence_seconds, degraded) for model in models),
    ]


def _clerk(clerks: Sequence[WorkerSeen], silence_seconds: float) -> Check:
    if not clerks:
        return Check("clerk", "there is none", "Start one: millrace clerk. Batches wait for it, chats do not.")
    if any(not _trouble(clerk, silence_seconds) for clerk in clerks):
        return Check("clerk")
    return Check("clerk", _trouble(clerks[0], silence_seconds), "Look at its log (clerk.log), and start it again.")


def _model(name: str, seen: Sequence[WorkerSeen], silence_seconds: float, degraded: Mapping[str, str]) -> Check:
    check = f"model {name}"
    words = next((worker.last_words for worker in seen if worker.last_words), None)
    for kind in _CONSUMERS:
        workers_of_kind = [worker for worker in seen if worker.kind == kind]
        if not workers_of_kind:
            return Check(check, _with(f"no {kind} worker serves it", words), _how_to_start(name, words))
        if all(_trouble(worker, silence_seconds) for worker in workers_of_kind):
            message = _trouble(workers_of_kind[0], silence_seconds)
            return Check(check, _with(message, words), f"Look at the worker's logs ({kind}.log, engine-{name}.log).")
    if name in degraded:
        return Check(check, f"is degraded: {degraded[name]}", f"Look at engine-{name}.log on the worker.")
    return Check(check)


def _trouble(worker: WorkerSeen, silence_seconds: float) -> str:
    """Why this process is not one that works; empty when it is."""
    if worker.seen_seconds > silence_seconds:
        return f"its {worker.kind} worker was last heard of {worker.seen_seconds:.0f} s ago"
    since_poll = worker.started_seconds if worker.poll_seconds is None else worker.poll_seconds
    if since_poll > silence_seconds:
        return f"its {worker.kind} worker has not looked for work for {since_poll:.0f} s"
    if worker.tick_seconds is not None and worker.tick_seconds > silence_seconds:
        return f"its engine has not turned for {worker.tick_seconds:.0f} s"
    return ""


def _with(message: str, words: str | None) -> str:
    return f"{message}; its engine's last words: {words}" if words else message


def _how_to_start(name: str, words: str | None) -> str:
    command = f"millrace worker --models {name}"
    return f"Correct the model's files, then start a worker: {command}" if words else f"Start one: {command}"
