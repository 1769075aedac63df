"""Readiness checks: the state of each dependency, and advice for those that fail.

The state of models comes from the workers' reports in the database (`core.readiness`), so it is correct while the broker is down.
"""

from __future__ import annotations

import asyncio
from typing import Final

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from api.services.relay import Relay
from api.services.service_metrics import degraded_models
from core.models.model_files import ModelCatalog
from core.readiness import Check, check_workers
from core.settings import Settings
from db import workers
from db.schema_version import ADVICE, current_version, needed_version

_TIMEOUT_SECONDS: Final = 2.0


async def run_checks(database: AsyncEngine, relay: Relay, catalog: ModelCatalog, settings: Settings) -> list[Check]:
    """Run all checks; each has a time-out of a few seconds."""
    rows, queue = await asyncio.gather(_database(database, catalog, settings), _queue(relay))
    return [*rows, queue]


async def _database(database: AsyncEngine, catalog: ModelCatalog, settings: Settings) -> list[Check]:
    """Check the database, its schema, and the workers that report to it."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS), database.connect() as connection:
            have, needed = await connection.run_sync(current_version), needed_version()
            if have != needed:
                return [Check("database"), _wrong_schema(have, needed)]
            seen = await workers.list_workers().async_fetch_all(connection)
            degraded = await degraded_models(connection, settings.engine_crashes)
    except (SQLAlchemyError, OSError) as error:  # TimeoutError is one
        advice = "Start it, or look at its log. Nothing that was accepted is lost meanwhile."
        return [Check("database", f"does not answer ({type(error).__name__})", advice)]
    models = check_workers(seen, catalog.names(), settings.silence_seconds, degraded)
    return [Check("database"), Check("schema"), *models]


def _wrong_schema(have: str | None, needed: str) -> Check:
    return Check("schema", f"is {have or 'missing'}, this api needs {needed}", ADVICE)


async def _queue(relay: Relay) -> Check:
    advice = "Start it, or look at its log. Batches go on without it; chats are refused until it is back."
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await relay.client.ping()
    except (RedisError, OSError) as error:
        return Check("queue", f"does not answer ({type(error).__name__})", advice)
    return Check("queue") if relay.is_connected else Check("queue", "events do not arrive yet", advice)
