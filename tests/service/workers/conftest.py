"""Contexts of workers and clerks on the real services."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

import pytest
import redis
from celery import Celery

from core.file_store import FileStore
from core.model_files import load_models
from core.queue.celery_app import make_celery
from core.queue.tickets import Tickets
from core.settings import Settings
from core.states import BatchState
from db import shards
from engine.process.client import EngineLost, Sink
from engine.process.protocol import EngineInfo
from engine.types import Choice, Delta, Failed, Finished, FinishReason, Request, Usage
from workers.context import ClerkContext, Database, ServedModel, WorkerContext
from workers.runtime.leases import LeaseKeeper, Renewed
from workers.runtime.publisher import Publisher

Answer = Callable[[Request], Finished | Failed | EngineLost | None]


def echo(request: Request) -> Finished:
    """Says what it was asked."""
    text = request.prompt.messages[-1]["content"]  # type: ignore[union-attr]
    usage = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    return Finished(request_id=request.id, choices=[Choice(reason=FinishReason.STOP, text=text)], usage=usage)


class ScriptedEngine:
    """Stands where an engine's client does and answers by a function; None leaves a request running."""

    def __init__(self) -> None:
        self.answer: Answer = echo
        self.info = EngineInfo(
            model="fake", build="scripted", context_size=4096, slots=4, num_vocab=258, template_hash="template"
        )
        self.asked: list[Request] = []
        self.running: dict[str, Sink] = {}
        self.streamed: list[str] = []
        self.max_running = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[Sink, Finished | Failed | EngineLost] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._deliver, daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink) -> None:
        with self._lock:
            self.asked.append(request)
            self.running[request.id] = sink
            self.max_running = max(self.max_running, len(self.running))
        outcome = self.answer(request)
        if outcome is not None:
            self.end(request.id, outcome)

    def end(self, request_id: str, outcome: Finished | Failed | EngineLost) -> None:
        with self._lock:
            sink = self.running.pop(request_id, None)
        if sink is not None:
            self._queue.put((sink, outcome))

    def cancel(self, request_id: str) -> None:
        usage = Usage(prompt_tokens=3, completion_tokens=0)
        cancelled = Choice(reason=FinishReason.CANCELLED, text="")
        self.end(request_id, Finished(request_id=request_id, choices=[cancelled], usage=usage))

    def stream(self, request_id: str) -> None:
        """Shows a word of it."""
        with self._lock:
            self.streamed.append(request_id)
            sink = self.running.get(request_id)
        if sink is not None:
            sink.on_delta(Delta(request_id=request_id, num_tokens=1, text="so far"))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _deliver(self) -> None:
        while (item := self._queue.get()) is not None:
            sink, outcome = item
            sink.on_end(outcome)


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
        catalog=load_models(settings.models_dir),
        files=FileStore(settings.files_root),
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
