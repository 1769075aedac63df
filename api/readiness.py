"""Readiness checks: the state of each dependency, and advice for those that fail.

The state of models comes from the workers' reports in the database (`core.readiness`), so it is correct while the broker is down.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import anyio.to_thread
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.services.model_states import read_service_state
from api.services.relay import Relay
from core.files.file_store import FileStore, FileStoreUnavailable
from core.models.live_catalog import LiveCatalog
from core.readiness import Check, ModelState, check_model
from core.settings import Settings
from db.schema_version import schema_problem
from db.shards import models_with_claimable_shards

_TIMEOUT_SECONDS: Final = 2.0
_FILE_ADVICE: Final = "Correct or remove it; no restart is needed. A model that it described before is still served."


class ReadyStatus(StrEnum):
    """DEGRADED: requests for some models are answered, and a check of another model fails."""

    OK = "ok"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class ReadyReport:
    """The outcome of all checks."""

    status: ReadyStatus
    checks: list[Check]


async def run_checks(
    database: AsyncEngine, relay: Relay, catalog: LiveCatalog, store: FileStore, settings: Settings
) -> ReadyReport:
    """Run all checks; each has a time-out of a few seconds. Files that are no models are listed, and change no status."""
    names = catalog.current.names()
    (rows, models), *others = await asyncio.gather(
        _database(database, names, settings), _queue(relay), _file_store(store)
    )
    checks = [*rows, *map(check_model, models), *others]
    files = [Check(f"file {file}", problem, _FILE_ADVICE) for file, problem in catalog.problems.items()]
    if not any(check.message for check in checks):
        return ReadyReport(ReadyStatus.OK, [*checks, *files])
    is_available = any(model.is_available for model in models)
    is_degraded = is_available and not any(check.message for check in (*rows, *others))
    return ReadyReport(ReadyStatus.DEGRADED if is_degraded else ReadyStatus.UNAVAILABLE, [*checks, *files])


async def _database(
    database: AsyncEngine, listed: list[str], settings: Settings
) -> tuple[list[Check], list[ModelState]]:
    """Check the database, its schema and the clerk, and derive the states of the models, also of those that lines wait for."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS), database.connect() as connection:
            if (problem := await connection.run_sync(schema_problem)) is not None:
                return [Check("database"), Check("schema", problem)], []
            state = await read_service_state(connection, listed, settings)
            waiting = set((await connection.execute(models_with_claimable_shards())).scalars())
    except (SQLAlchemyError, OSError) as error:  # TimeoutError is one
        advice = "Start it, or look at its log. Nothing that was accepted is lost meanwhile."
        return [Check("database", f"does not answer ({type(error).__name__})", advice)], []
    unlisted = [state.model(name) for name in sorted(waiting - set(state.listed))]
    return [Check("database"), Check("schema"), state.clerk()], [*state.models(), *unlisted]


async def _queue(relay: Relay) -> Check:
    advice = "Start it, or look at its log. Batches go on without it; chats are refused until it is back."
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await relay.client.ping()
    except (RedisError, OSError) as error:
        return Check("queue", f"does not answer ({type(error).__name__})", advice)
    return Check("queue") if relay.is_connected else Check("queue", "events do not arrive yet", advice)


async def _file_store(store: FileStore) -> Check:
    advice = "Look at the storage. Chats and running batches go on without it; uploads and downloads are refused."
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await anyio.to_thread.run_sync(store.ping, abandon_on_cancel=True)
    except FileStoreUnavailable as error:
        return Check("file store", error.reason, error.advice)
    except TimeoutError:
        return Check("file store", f"does not answer within {_TIMEOUT_SECONDS:.0f} s", advice)
    return Check("file store")
