"""The FastAPI application: builds what the process needs, once, and gathers the endpoints."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from api.errors import install_error_handlers
from api.metrics import Metrics
from api.middleware import AnswerHeaders, TooLargeEnvelope
from api.relay import Relay
from api.routes import batches, chat, health, jobs, models
from api.routes.batch_validation import add_validation_route
from api.routes.files import add_file_routes
from api.state import ApiState, TicketSender
from core.broker import make_celery
from core.files import FileStore
from core.models import load_models
from core.settings import Settings
from core.tickets import Tickets
from db.schema import check_schema
from db.sessions import async_database_engine, database_engine


def create_app(settings: Settings) -> FastAPI:
    """An app for these settings; starts only on a database whose schema is the one this code needs."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        assert settings.database_url, "a process is started with the addresses it needs"
        assert settings.redis_url, "a process is started with the addresses it needs"
        checking = database_engine(settings.database_url, pool_size=1)
        check_schema(checking)
        checking.dispose()
        state = ApiState(
            settings=settings,
            database=async_database_engine(settings.database_url, pool_size=10),
            relaxed=async_database_engine(settings.database_url, pool_size=10, relaxed=True),
            catalog=load_models(settings.models_dir),
            files=FileStore(settings.files_root),
            relay=Relay(settings.redis_url, settings.key_prefix),
            sender=TicketSender(Tickets(make_celery(settings))),
            metrics=metrics,
            started_at=int(time.time()),
        )
        app.state.millrace = state
        await state.relay.start()
        try:
            yield
        finally:
            await state.relay.close()
            state.sender.close()
            await state.database.dispose()
            await state.relaxed.dispose()

    app = FastAPI(
        title="Millrace",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url="/docs",
        redoc_url=None,
    )
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.body_bytes)  # innermost; routes may raise it
    app.add_middleware(TooLargeEnvelope)
    app.add_middleware(AnswerHeaders, metrics=metrics)
    install_error_handlers(app)
    for router in (chat.router, batches.router, jobs.router, models.router, health.router):
        app.include_router(router)
    add_file_routes(app, settings)
    add_validation_route(app, settings)
    return app
