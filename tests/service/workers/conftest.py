"""Contexts of workers and clerks on the real services."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

import pytest
import redis
from celery import Celery

from core.files.open_store import open_file_store
from core.models.live_catalog import LiveCatalog
from core.models.models_folder import load_models
from core.queue.celery_app import make_celery
from core.queue.tickets import Tickets
from core.settings import Settings
from core.states import BatchState
from db import shards
from tests.support.scripted_engine import ScriptedEngine
from workers.context import ClerkContext, Database, ServedModel, WorkerContext
from workers.runtime.leases import LeaseKeeper, Renewed
from workers.runtime.publisher import Publisher


@pytest.fixture
def celery_app(settings: Settings) -> Iterator[Celery]:
    app = make_celery(settings)
    yield app
    app.close()


@pytest.fixture
def clerk(settings: Settings, database: Database, valkey: redis.Redis, celery_app: Celery) -> Iterator[ClerkContext]:
    publisher = Publisher(valkey, settings.key_prefix)
    yield ClerkContext(
        settings=settings,
        database=database,
        live_catalog=LiveCatalog(settings.models_dir),
        files=open_file_store(settings),
        tickets=Tickets(celery_app),
        publisher=publisher,
    )
    publisher.close()


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    scripted = ScriptedEngine()
    yield scripted
    scripted.close()


@pytest.fixture
def worker(
    settings: Settings, database: Database, valkey: redis.Redis, celery_app: Celery, engine: ScriptedEngine
) -> Iterator[WorkerContext]:
    model = load_models(settings.models_dir).get("fake")
    assert model is not None

    def renew(held: Mapping[str, int]) -> list[Renewed]:
        with database.begin() as connection:
            rows = shards.renew_shards(held, timedelta(seconds=60)).fetch_all(connection)
        return [Renewed(row[0], row[1], row[2] != BatchState.IN_PROGRESS) for row in rows]

    publisher = Publisher(valkey, settings.key_prefix)
    yield WorkerContext(
        settings=settings,
        owner="me",
        database=database,
        claims=database,
        models={"fake": ServedModel(model=model, engine=engine, model_hash="hash")},  # type: ignore[arg-type]
        leases=LeaseKeeper(renew, lambda _: True, heartbeat_seconds=3600, lease_seconds=60),
        tickets=Tickets(celery_app),
        publisher=publisher,
    )
    publisher.close()
