"""Fixtures that start real services: a Postgres and a Valkey of the project's own launcher, in a temporary folder."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import httpx2
import pytest
import redis
from openai import OpenAI
from sqlalchemy import Connection, Engine, text

from cli.stack.services import Services
from core.settings import Settings
from db.connections import database_engine
from db.schema_version import upgrade
from tests.support import hypothesis_profile  # noqa: F401 - pytest asks for its profile before any test is there
from tests.support.stack import StackProcess
from workers.context import Database

# A shell that starts pytest in the background makes it ignore Ctrl-C, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Reasons for which a test may be skipped where MILLRACE_CI is 1: the machine lacks what the test needs.
SKIP_REASONS: Final = (
    "mounts and user namespaces are refused here",
    "Postgres keeps its data outside the mounted disk, since user namespaces are refused here",
    "needs root",
    "needs openssl",
    "needs curl",
    "needs npm",
    "needs two CPUs",
    "needs the extra transformers",
    "needs network namespaces",
    "needs nginx",
    "needs pgbouncer",
    "needs promtool",
    "needs systemd-analyze",
    "needs helm-python-sdk",
)

FAKE_MODEL = "name: fake\nbackend: fake\nembeddings: true\nslots: 8\ncontext_size: 4096\naliases: [also-fake]\n"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure on CI, so that a suite cannot pass by leaving tests out."""
    report = yield
    if os.environ.get("MILLRACE_CI") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(SKIP_REASONS):
            report.outcome = "failed"
            report.longrepr = f"{reason!r} is not among SKIP_REASONS of tests/conftest.py"
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run `async def` tests and fixtures on asyncio alone."""
    return "asyncio"


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with Services(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "fake.yaml").write_text(FAKE_MODEL)
    return folder


@pytest.fixture(scope="session")
def migrated(services: Services) -> Iterator[Engine]:
    """A pool on the migrated database."""
    engine = database_engine(services.database_url, pool_size=5)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def database(migrated: Engine) -> Database:
    """An empty database whose transactions are real."""
    with migrated.begin() as connection:
        connection.execute(
            text(
                "TRUNCATE files, batches, shards, jobs, usage_daily, uploads, idempotency_keys, webhooks, validations, "
                "quarantine, engine_crashes, workers, counters, model_requests, model_loads CASCADE"
            )
        )
        connection.execute(text("DELETE FROM tenants WHERE id <> 'default'"))
    return Database(migrated)


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """Yield one transaction and roll it back."""
    with database.engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


@pytest.fixture
def without_gc() -> Iterator[None]:
    """No garbage collection during the test: what is freed meanwhile is in no cycle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def valkey(services: Services) -> Iterator[redis.Redis]:
    """An empty Valkey."""
    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def settings(services: Services, models_dir: Path, tmp_path: Path) -> Settings:
    """Return settings for objects that a test builds in its own process."""
    return Settings(
        state_dir=tmp_path / "state",
        models_dir=models_dir,
        database_url=services.database_url,
        redis_url=services.redis_url,
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackProcess]:
    """A running stack: the real processes, a quick fake model and a slow one."""
    folder = tmp_path_factory.mktemp("server")
    models = folder / "models"
    models.mkdir()
    (models / "fake.yaml").write_text(FAKE_MODEL)
    (models / "slow.yaml").write_text("name: slow\nbackend: fake\nslots: 2\nstep_seconds: 0.02\n")
    limits = {"MILLRACE_BODY_BYTES": "100000", "MILLRACE_BATCH_FILE_BYTES": "200000", "MILLRACE_FILE_BYTES": "300000"}
    process = StackProcess(folder, models, **limits)
    process.start()
    yield process
    process.close()


@pytest.fixture
def client(server: StackProcess) -> Iterator[OpenAI]:
    """Yield the official client."""
    with server.client() as client:
        yield client


@pytest.fixture
def http(server: StackProcess) -> Iterator[httpx2.Client]:
    """Yield a plain HTTP client, for requests that the official client cannot send."""
    hooks = {"response": [server.published.check]}
    with httpx2.Client(base_url=server.url, timeout=30, event_hooks=hooks) as client:
        yield client
