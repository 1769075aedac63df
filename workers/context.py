"""What a worker process is built from, once, at its entry point."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Connection, Engine

from core.failpoints import Point
from core.file_store import FileStore
from core.model_files import ModelCatalog, ModelConfig
from core.queue.tickets import Tickets
from core.settings import Settings
from db.connections import transaction
from db.jobs import Provenance
from engine.process.client import EngineClient
from workers.generation.chat_response import fingerprint
from workers.generation.endpoints.base import ResponseHeader
from workers.runtime.counters import Counters
from workers.runtime.leases import LeaseKeeper
from workers.runtime.publisher import Publisher


class Database:
    """Transactions of this process; each ends at the edge of the block."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def begin(self, *, committing: Point | None = None, committed: Point | None = None) -> Iterator[Connection]:
        """A transaction, with the failpoints that bracket its commit; on a relaxed pool, each statement is one."""
        with transaction(self.engine, committing=committing, committed=committed) as connection:
            yield connection


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model this process can generate with."""

    model: ModelConfig
    engine: EngineClient
    model_hash: str | None

    @property
    def build(self) -> str:
        """The engine's build, as recorded with each answer."""
        info = self.engine.info
        return info.build if info else "unknown"

    @property
    def template_hash(self) -> str | None:
        """Of the chat template the engine renders with."""
        info = self.engine.info
        return info.template_hash if info else None

    @property
    def made_by(self) -> Provenance:
        """What is recorded with each of its answers."""
        return Provenance(
            build=self.build,
            model_hash=self.model_hash,
            settings_hash=self.model.answers_hash,
            template_hash=self.template_hash,
            model_parameters=self.model.parameters.model_dump_json(exclude={"model"}, exclude_none=True),
        )

    @property
    def slots(self) -> int:
        """Sequences the engine decodes side by side."""
        info = self.engine.info
        return info.slots if info else 1

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of its answers."""
        return fingerprint(self.build, self.model_hash, self.model.answers_hash, self.template_hash)

    def head(self, job_id: str) -> ResponseHeader:
        """What an answer to a job says first."""
        return ResponseHeader(job_id=job_id, model=self.model.name, fingerprint=self.fingerprint)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClerkContext:
    """For what needs no engine."""

    settings: Settings
    database: Database
    catalog: ModelCatalog
    files: FileStore
    tickets: Tickets
    publisher: Publisher


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """For what generates. `owner` names this process in leases; `claims` is the relaxed pool (see `db.connections`)."""

    settings: Settings
    owner: str
    database: Database
    claims: Database
    models: dict[str, ServedModel]
    leases: LeaseKeeper
    tickets: Tickets
    publisher: Publisher
    tally: Counters = field(default_factory=Counters)

    @property
    def lease(self) -> timedelta:
        """How long a claim holds without a heartbeat."""
        return timedelta(seconds=self.settings.lease_seconds)

    def served(self, model: str) -> ServedModel | None:
        """The model by its canonical name, if it runs here."""
        return self.models.get(model)
