"""Is it alive, is it ready, what does it count. For machines that watch machines; no key needed."""

from __future__ import annotations

import asyncio
from typing import Final, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.openapi import gives
from api.state import ApiState, StateDep
from core.wire.objects import WireObject
from db import webhooks
from db.schema import current_version, needed_version

router = APIRouter(tags=["health"])

_COUNT_SECONDS: Final = 1.0


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


class Readiness(WireObject):
    """`checks` says of each thing that is needed `ok`, or what is wrong with it."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
async def readyz(state: StateDep) -> JSONResponse:
    """What it needs answers too; what does not is named."""
    checks = {"database": await _database(state), "queue": await _queue(state)}
    is_ready = all(answer == "ok" for answer in checks.values())
    return JSONResponse({"status": "ok" if is_ready else "unavailable", "checks": checks}, 200 if is_ready else 503)


@router.get("/metrics", responses=gives(media_type="text/plain"))
async def metrics(state: StateDep) -> Response:
    """Prometheus's text format."""
    await _count_webhooks(state)
    return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _count_webhooks(state: ApiState) -> None:
    """Clerks send, and have no port: their rows tell. A database that is away leaves the numbers as they were."""
    try:
        async with asyncio.timeout(_COUNT_SECONDS), state.database.connect() as connection:
            counts = (await connection.execute(webhooks.delivery_counts())).one()
    except (SQLAlchemyError, OSError):  # TimeoutError is one
        return
    for name in ("waiting", "retrying", "delivered", "given_up"):
        state.metrics.webhook_events.labels(state=name).set(getattr(counts, name))
    state.metrics.webhook_oldest_seconds.set(counts.oldest)


async def _database(state: ApiState) -> str:
    try:
        async with state.database.connect() as connection:
            await connection.execute(text("SELECT 1"))
            have = await connection.run_sync(current_version)
    except (SQLAlchemyError, OSError) as error:
        return f"does not answer ({type(error).__name__})"
    return "ok" if have == needed_version() else f"schema is {have}, this api needs {needed_version()}"


async def _queue(state: ApiState) -> str:
    try:
        await state.relay.client.ping()
    except (RedisError, OSError) as error:
        return f"does not answer ({type(error).__name__})"
    return "ok" if state.relay.is_connected else "events do not arrive yet"
