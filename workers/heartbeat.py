"""Presence: a process that works tells the database so, with each heartbeat, on a connection of its own.

Readiness, metrics and `millrace doctor` read these rows, whether the broker lives or not. What is told proves work, not life:
when it last looked for work and the database answered, and when each engine's loop last turned.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core import ids
from core.counters import CounterName
from db import jobs, shards, workers
from db.workers import EngineReport, WorkerReport
from workers.context import Database, ServedModel, WorkerContext
from workers.runtime.counters import Totals

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who reports. A consumer's `id` is the owner of its leases.

    Of those whose `id` begins with `slot` only one lives at a time; None: there may be several of this kind.
    """

    id: str
    kind: str
    host: str
    pid: int
    slot: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What there is to report: seconds since the last look for work (None: not yet), engines, everything counted so far."""

    poll_seconds: float | None = None
    engines: list[EngineReport] = field(default_factory=list)
    totals: Totals = field(default_factory=dict)


def clerk_identity() -> Identity:
    """Of this process, and of no other one ever."""
    host, pid = socket.gethostname(), os.getpid()
    return Identity(id=f"{ids.new_id(ids.WORKER)}@{host}:{pid}", kind="clerk", host=host, pid=pid)


def consumer_identity(kind: str, state_dir: Path, device: str, models: list[str]) -> Identity:
    """Of this process, and of no other one ever. Its launcher starts another one only when this one has ended."""
    host, pid = socket.gethostname(), os.getpid()
    slot = f"{ids.WORKER}{_place(state_dir, device, *sorted(models))}@{host}/{kind}:"
    return Identity(id=f"{slot}{ids.new_id('')}", kind=kind, host=host, pid=pid, slot=slot)


def launcher_identity(state_dir: Path, device: str) -> Identity:
    """The same for whatever launcher runs a device: one that is started again and again leaves one row."""
    host = socket.gethostname()
    return Identity(id=f"launcher_{_place(state_dir, device)}@{host}", kind="launcher", host=host, pid=os.getpid())


def _place(state_dir: Path, *more: str) -> str:
    return hashlib.sha256("@".join([str(state_dir.resolve()), *more]).encode()).hexdigest()[:12]


def worker_status(context: WorkerContext, poll_seconds: float | None, now: float) -> Status:
    """Of a consumer with engines; `now` is the monotonic clock's."""
    return Status(
        poll_seconds=poll_seconds,
        engines=_engine_reports(context.models, now),
        totals={
            (CounterName.LEASES_LOST, ""): context.leases.num_lost,
            (CounterName.EVENTS_DROPPED, ""): context.publisher.num_dropped,
            **context.counters.totals(),
        },
    )


def _engine_reports(models: Mapping[str, ServedModel], now: float) -> list[EngineReport]:
    return [
        EngineReport(model=name, tick_seconds=served.engine.seconds_since_tick(now)) for name, served in models.items()
    ]


class WorkerHeartbeat:
    """The row of this process."""

    def __init__(self, identity: Identity, database: Database, status: Callable[[], Status], *, seconds: float) -> None:
        self._identity = identity
        self._database = database
        self._status = status
        self._seconds = seconds
        self._told: dict[tuple[str, str], int] = {}
        self._is_row_kept = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Report at once, so that whoever is told that this process is ready finds its row; then with each heartbeat."""
        if self._stop.is_set():  # told to leave before it was there
            return
        self._try(self.beat)
        self._thread.start()

    def claim_slot(self) -> None:
        """Whoever had this slot before is dead: others need not wait for its leases to end. To be called before any claim.

        Without a database they end by themselves.
        """
        self._try(self._bury)

    def _bury(self) -> None:
        who = self._identity
        if who.slot is None:
            return
        with self._database.begin() as connection:
            num_jobs = len(connection.execute(jobs.end_leases(who.slot)).all())
            num_shards = len(connection.execute(shards.end_leases(who.slot)).all())
            connection.execute(workers.remove_predecessors(who.slot))
        if num_jobs or num_shards:
            log.warning("leases_of_the_dead_ended", slot=who.slot, jobs=num_jobs, shards=num_shards)

    def close(self, timeout_seconds: float = 1.0, *, is_row_kept: bool = False) -> None:
        """The row goes, unless the database is away (then it is taken for dead in a while), or what it says is still of use."""
        self._is_row_kept = is_row_kept
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def beat(self) -> None:
        """Report once. Public so that tests need no thread."""
        status, who = self._status(), self._identity
        report = WorkerReport(
            id=who.id,
            kind=who.kind,
            host=who.host,
            pid=who.pid,
            poll_seconds=status.poll_seconds,
            engines=status.engines,
        )
        new = {key: total - self._told.get(key, 0) for key, total in status.totals.items()}
        new = {key: number for key, number in new.items() if number}
        with self._database.begin() as connection:
            connection.execute(workers.report_worker(report))
            if report.engines:
                connection.execute(workers.report_engines(report))
            if new:
                connection.execute(workers.add_counts(new))
        self._told.update(status.totals)

    def _leave(self) -> None:
        self.beat()  # what was counted last
        if self._is_row_kept:
            return
        with self._database.begin() as connection:
            connection.execute(workers.remove_worker(self._identity.id))

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._try(self.beat)
        self._try(self._leave)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except SQLAlchemyError as error:
            log.warning("presence_not_told", reason=type(error).__name__)
