"""The FastAPI application: builds what the process needs, once, and gathers the endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from api.dependencies import AppState, TicketSender
from api.http.connection_limits import BodyTimeout
from api.http.errors import install_error_handlers
from api.http.openapi import ERRORS, install_openapi
from api.live.shutdown import ShutdownResponses
from api.middleware import ResponseHeaders, TooLargeEnvelope
from api.routes import (
    batch_control,
    batch_events,
    batch_requests,
    batches,
    chat,
    completions,
    health,
    jobs,
    models,
    responses,
    usage,
    webhooks,
)
from api.routes.batch_validation import add_validation_route
from api.routes.files import add_file_routes
from api.routes.uploads import add_upload_routes
from api.services.key_revocation import close_revoked_streams
from api.services.key_ring import KeyRing
from api.services.metrics import Metrics
from api.services.rate_limiter import RateLimiter
from api.services.relay import Relay
from api.services.service_metrics import ServiceMetrics
from api.services.stream_limiter import StreamSlots
from api.services.waiters import Waiters
from core.file_store import FileStore
from core.model_files import load_models
from core.queue.celery_app import make_sender
from core.queue.tickets import Tickets
from core.settings import Settings
from db.connections import ConnectionLosses, async_database_engine, database_engine
from db.keys import check_exposure
from db.schema_version import check_schema

_ROUTES = (
    chat, completions, responses, batches, batch_requests, batch_control, batch_events, jobs, models, webhooks, usage, health,
)  # fmt: skip


def create_app(settings: Settings) -> FastAPI:
    """An app for these settings, on a database that `check_database` has taken."""
    metrics, fleet = Metrics(), ServiceMetrics(settings)
    metrics.add(fleet)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.millrace = state = _make_state(settings, metrics, fleet)
        await state.relay.start()
        revoking = asyncio.create_task(
            close_revoked_streams(state.readers, state.database, settings.key_cache_seconds), name="revoking"
        )
        try:
            yield
        finally:
            revoking.cancel()
            await state.relay.close()
            await state.limiter.close()
            state.sender.close()
            await state.database.dispose()
            await state.async_commit.dispose()

    app = FastAPI(
        title="Millrace",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url="/docs",
        redoc_url=None,
        responses=ERRORS,
    )
    install_openapi(app)
    app.add_middleware(BodyTimeout, pause_seconds=settings.body_pause_seconds)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.body_bytes)  # routes may raise it
    app.add_middleware(TooLargeEnvelope)
    app.add_middleware(ShutdownResponses)
    app.add_middleware(ResponseHeaders, metrics=metrics)
    install_error_handlers(app)
    for module in _ROUTES:
        app.include_router(module.router)
    add_file_routes(app, settings)
    add_upload_routes(app, settings)
    add_validation_route(app, settings)
    return app


def check_database(settings: Settings) -> None:
    """Raises what is wrong with its schema, or with listening where we do: a MillraceError, for who starts the process."""
    assert settings.database_url, "a process is started with the addresses it needs"
    database = database_engine(settings.database_url, pool_size=1)
    try:
        check_schema(database)
        with database.connect() as connection:
            check_exposure(connection, settings)
    finally:
        database.dispose()


def _make_state(settings: Settings, metrics: Metrics, fleet: ServiceMetrics) -> AppState:
    assert settings.database_url, "a process is started with the addresses it needs"
    assert settings.redis_url, "a process is started with the addresses it needs"
    losses = ConnectionLosses()
    database = async_database_engine(settings.database_url, pool_size=10, losses=losses)
    limiter, readers = RateLimiter(settings.redis_url, settings.key_prefix), Waiters()
    return AppState(
        settings=settings,
        database=database,
        async_commit=async_database_engine(settings.database_url, pool_size=10, async_commit=True, losses=losses),
        catalog=load_models(settings.models_dir),
        files=FileStore(settings.files_root),
        relay=Relay(settings.redis_url, settings.key_prefix, readers),
        keys=KeyRing(database, cache_seconds=settings.key_cache_seconds, open_without_keys=settings.open_without_keys),
        limiter=limiter,
        streams=StreamSlots(limiter.client, settings.key_prefix),
        sender=TicketSender(Tickets(make_sender(settings))),
        metrics=metrics,
        fleet=fleet,
        started_at=int(time.time()),
        readers=readers,
    )
