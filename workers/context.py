"""The dependencies of a worker process, built once at its entry point."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache

from sqlalchemy import Connection, Engine

from core.failpoints import Point
from core.files.file_store import FileStore
from core.models.engine_options import BackendKind
from core.models.live_catalog import LiveCatalog
from core.models.model_files import ModelCatalog, ModelConfig
from core.queue.tickets import Tickets
from core.settings import Settings
from db.connections import transaction
from db.jobs import Provenance
from engine.process.client import EngineClient
from workers.generation.endpoints.base import ResponseHeader
from workers.runtime.counters import Counters
from workers.runtime.leases import LeaseKeeper
from workers.runtime.publisher import Publisher
from workers.runtime.recorder import Recorder
from workers.runtime.request_metrics import RequestMetrics


class Database:
    """Opens transactions on the pool of this process."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def begin(self, *, committing: Point | None = None, committed: Point | None = None) -> Iterator[Connection]:
        """Open a transaction, with failpoints before and after its commit; with `async_commit`, each statement is its own."""
        with transaction(self.engine, committing=committing, committed=committed) as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Open a connection on which each statement is a transaction of its own, in one round trip."""
        with self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model whose engine runs beside this process."""

    model: ModelConfig
    engine: EngineClient
    model_hash: str | None

    @property
    def build(self) -> str:
        """The engine's build, or "unknown" before its first reply."""
        info = self.engine.info
        return info.build if info else "unknown"

    @property
    def template_hash(self) -> str | None:
        """The hash of the chat template that the engine renders with; None where a server renders it."""
        info = self.engine.info
        return (info.template_hash or None) if info else None

    @property
    def provenance(self) -> Provenance:
        """The facts that are recorded with each answer."""
        return Provenance(
            build=self.build,
            model_hash=self.model_hash,
            settings_hash=self.model.answers_hash,
            template_hash=self.template_hash,
            model_parameters=self._model_parameters,
        )

    @property
    def _model_parameters(self) -> str | None:
        """JSON of the sampling parameters in the model file; None for a server, since its own are unknown."""
        if self.model.backend is BackendKind.OPENAI:
            return None
        return self.model.parameters.model_dump_json(exclude={"model"}, exclude_none=True)

    @property
    def slots(self) -> int:
        """Sequences that the engine decodes side by side."""
        info = self.engine.info
        return info.slots if info else 1

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of its answers."""
        return system_fingerprint(self.build, self.model_hash, self.model.answers_hash, self.template_hash)

    def header(self, job_id: str) -> ResponseHeader:
        """The header of a response to a job, created now."""
        return ResponseHeader(job_id=job_id, model=self.model.name, fingerprint=self.fingerprint)


@lru_cache(maxsize=64)  # the same for each answer of a model
def system_fingerprint(build: str, model_hash: str | None, settings_hash: str, template_hash: str | None) -> str:
    """Equal where all parts are equal.

    The template is a part of its own: without one in the weights or the model file, the engine's default is used.
    """
    parts = f"{build}:{model_hash}:{settings_hash}:{template_hash}"
    return "fp_" + hashlib.sha256(parts.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClerkContext:
    """The dependencies of a clerk, which has no engine."""

    settings: Settings
    database: Database
    live_catalog: LiveCatalog
    files: FileStore
    tickets: Tickets
    publisher: Publisher
    counters: Counters = field(default_factory=Counters)
    recorder: Recorder = field(default_factory=Recorder)

    @property
    def catalog(self) -> ModelCatalog:
        """The present models. Read it once for each piece of work, since it may change meanwhile."""
        return self.live_catalog.current

    def look_at_models(self) -> ModelCatalog:
        """Look at the models folder now: a batch may name a model that the api has noticed a moment ago."""
        self.live_catalog.refresh()
        return self.live_catalog.current


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """The dependencies of a consumer with engines.

    `owner` names this process in leases; `claims` is a pool with `async_commit` (see `db.connections`). `models` are those with
    an engine beside this process, by name; they come and go.
    """

    settings: Settings
    owner: str
    database: Database
    claims: Database
    models: dict[str, ServedModel]
    leases: LeaseKeeper
    tickets: Tickets
    publisher: Publisher
    counters: Counters = field(default_factory=Counters)
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    @property
    def lease(self) -> timedelta:
        """Time for which a claim holds without a heartbeat."""
        return timedelta(seconds=self.settings.lease_seconds)
