"""The FastAPI application: builds the services of the process once, and gathers the endpoints."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import State
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware

from api.access.admission import Admission
from api.batches.feed import BatchFeeds
from api.dependencies import Authenticator
from api.files.multipart import FORM_OVERHEAD
from api.http.connection_limits import BodyTimeout
from api.http.cors import cors_options
from api.http.errors import install_error_handlers
from api.http.openapi import ERRORS, install_openapi
from api.live.job_client import JobClient
from api.live.live_job import LiveJobs
from api.live.shutdown import ShutdownResponses
from api.middleware import PROBES, AccessLog, HeadAsGet, ResponseHeaders, TooLargeEnvelope, UnexpectedErrors
from api.routes import (
    activity,
    api_keys,
    batch_control,
    batch_events,
    batch_feed,
    batch_requests,
    batch_tables,
    batch_validation,
    batches,
    chat,
    completions,
    files,
    health,
    jobs,
    me,
    models,
    pages,
    responses,
    stored_chats,
    uploads,
    usage,
    web,
    webhooks,
)
from api.services.activity import ActivityReader
from api.services.key_revocation import close_revoked_streams
from api.services.key_ring import KeyRing
from api.services.metrics import Metrics
from api.services.model_states import ModelStates
from api.services.rate_limiter import RateLimiter
from api.services.relay import Relay
from api.services.service_metrics import ServiceMetrics
from api.services.stream_limiter import StreamLimiter
from api.services.ticket_sender import TicketSender
from api.services.waiters import Waiters
from api.tables.table_input import MAX_FIELD_BYTES
from api.tables.table_processes import TableProcesses
from core.files.open_store import open_file_store
from core.models.live_catalog import LiveCatalog
from core.queue.celery_app import make_sender
from core.queue.tickets import Tickets
from core.settings import Settings
from core.telemetry import tracing
from core.version import VERSION
from db.connections import ConnectionLosses, async_database_engine, database_engine
from db.keys import check_exposure
from db.schema_version import check_schema

_ROUTERS = tuple(
    module.router
    for module in (
        chat, stored_chats, completions, responses, batch_feed, batches, batch_requests, batch_control, batch_events, jobs,
        models, activity, webhooks, usage, me, api_keys, health, files, uploads, pages,
    )
)  # fmt: skip


def create_app(settings: Settings) -> FastAPI:
    """An app for these settings, on a database that `check_database` has accepted."""
    metrics, service_metrics = Metrics(), ServiceMetrics(settings)
    metrics.add(service_metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = app.state
        state.metrics, state.service_metrics = metrics, service_metrics
        _build_services(state, settings)
        state.live_catalog.start()
        await state.relay.start()
        revoking = asyncio.create_task(
            close_revoked_streams(state.waiters, state.database, settings.key_cache_seconds), name="key_revocation"
        )
        try:
            yield
        finally:
            revoking.cancel()
            state.live_catalog.close()
            await state.relay.close()
            await state.limiter.close()
            await state.tickets.close()
            await state.database.dispose()
            await state.jobs.async_commit.dispose()
            await asyncio.to_thread(tracing.stop_tracing)

    app = FastAPI(
        title="Millrace",
        lifespan=lifespan,
        redirect_slashes=False,
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        telemetry=_telemetry(),
    )
    install_openapi(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(BodyTimeout, pause_seconds=settings.body_pause_seconds)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.body_bytes)  # the routers of uploads raise it
    app.add_middleware(TooLargeEnvelope)
    app.add_middleware(ShutdownResponses)
    app.add_middleware(UnexpectedErrors)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, **cors_options(settings.cors_origins))
    app.add_middleware(ResponseHeaders, metrics=metrics)
    app.add_middleware(AccessLog, is_on=settings.access_log)
    install_error_handlers(app)
    _include_routers(app, settings)
    return app


def _telemetry() -> TelemetryConfig:
    """A span for each request if tracing is on, and nothing else of what FastAPI can record."""
    provider = tracing.tracer_provider()
    return {
        "tracing": provider is not None,
        "tracer_provider": provider,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope.get("path") in PROBES,
    }


def check_files(settings: Settings) -> None:
    """Raise the MillraceError of a file store that cannot be used."""
    open_file_store(settings).check()


def check_database(settings: Settings) -> None:
    """Raise the MillraceError of a database with another schema, or of an address that needs API keys."""
    assert settings.database_url, "a process is started with the addresses it needs"
    database = database_engine(settings.database_url, pool_size=1)
    try:
        check_schema(database)
        with database.connect() as connection:
            check_exposure(connection, settings)
    finally:
        database.dispose()


def _include_routers(app: FastAPI, settings: Settings) -> None:
    for router in _ROUTERS:
        app.include_router(router)
    file_bytes = max(settings.file_bytes, settings.batch_file_bytes)
    app.include_router(web.web_router() if settings.web else pages.addresses_router)
    app.include_router(models.control_router)
    app.include_router(files.upload_router, max_body_size=file_bytes + FORM_OVERHEAD)
    app.include_router(uploads.part_router, max_body_size=settings.upload_part_bytes + FORM_OVERHEAD)
    app.include_router(batch_tables.router, max_body_size=settings.file_bytes + MAX_FIELD_BYTES + FORM_OVERHEAD)
    app.include_router(batch_validation.router, max_body_size=settings.batch_file_bytes + FORM_OVERHEAD)


def _build_services(state: State, settings: Settings) -> None:
    """Build what the aliases of `api.dependencies` and its users name."""
    assert settings.database_url, "a process is started with the addresses it needs"
    assert settings.redis_url, "a process is started with the addresses it needs"
    losses = ConnectionLosses()
    database = async_database_engine(settings.database_url, pool_size=10, losses=losses)
    async_commit = async_database_engine(settings.database_url, pool_size=10, async_commit=True, losses=losses)
    state.settings = settings
    state.started_at = int(time.time())
    state.shutting_down = asyncio.Event()  # set when the process begins to stop
    state.database = database
    state.live_catalog = LiveCatalog(settings.models_dir)
    state.files = open_file_store(settings)
    state.table_processes = TableProcesses()
    state.waiters = Waiters()
    state.relay = Relay(
        settings.redis_url, settings.key_prefix, state.waiters, dropped=state.metrics.dropped_subscribers
    )
    state.model_states = ModelStates(database, state.live_catalog, settings, state.relay.send_wanted)
    state.activity = ActivityReader(database, state.model_states, settings.silence_seconds)
    state.batch_feeds = BatchFeeds(database, state.model_states)
    state.limiter = RateLimiter(settings.redis_url, settings.key_prefix)
    state.tickets = TicketSender(Tickets(make_sender(settings)), settings.redis_url, settings.key_prefix)
    state.key_ring = KeyRing(
        database, cache_seconds=settings.key_cache_seconds, open_without_keys=settings.open_without_keys
    )
    state.authenticator = Authenticator(settings=settings, keys=state.key_ring, limiter=state.limiter)
    state.admission = Admission(settings=settings, database=database, limiter=state.limiter)
    state.jobs = JobClient(
        database=database,
        async_commit=async_commit,
        tickets=state.tickets,
        relay=state.relay,
        models=state.model_states,
        keep_alive_seconds=settings.keep_alive_seconds,
    )
    state.live_jobs = LiveJobs(
        jobs=state.jobs,
        streams=StreamLimiter(state.limiter.client, settings.key_prefix),
        metrics=state.metrics,
        models=state.model_states,
        shutting_down=state.shutting_down,
        timeout_seconds=settings.chat_timeout_seconds,
    )
