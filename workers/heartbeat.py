"""Worker heartbeat: a process writes its row to the database every few seconds, on a connection of its own.

Readiness, metrics and `millrace doctor` read these rows, so they do not depend on the broker. A row proves work, not only that
the process exists: it has the age of the last successful poll, and of the last tick of each engine's loop.
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
from db.workers import DeviceReport, EngineReport, WorkerReport
from workers.context import Database, ServedModel, WorkerContext
from workers.runtime.counters import Totals

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The process that reports. A consumer's `id` is the owner of its leases.

    Only one process at a time runs among those whose `id` begins with `slot`; None where several may.
    """

    id: str
    kind: str
    host: str
    pid: int
    slot: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The content of a report: seconds since the last successful poll (None before it), engines, device, and all counts."""

    poll_seconds: float | None = None
    engines: list[EngineReport] = field(default_factory=list)
    device: DeviceReport | None = None
    totals: Totals = field(default_factory=dict)


def clerk_identity() -> Identity:
    """An id that no other process ever has."""
    host, pid = socket.gethostname(), os.getpid()
    return Identity(id=f"{ids.new_id(ids.WORKER)}@{host}:{pid}", kind="clerk", host=host, pid=pid)


def consumer_slot(state_dir: Path, device: str, models: str) -> str:
    """The name of a launcher for its consumers: `models` is its argument. The same after a restart."""
    return _digest(state_dir, device, models)


def consumer_identity(kind: str, slot: str) -> Identity:
    """An id that no other process ever has, in the slot that its launcher fills again when this process has ended."""
    host, pid = socket.gethostname(), os.getpid()
    slot = f"{ids.WORKER}{slot}@{host}/{kind}:"
    return Identity(id=f"{slot}{ids.new_id('')}", kind=kind, host=host, pid=pid, slot=slot)


def launcher_identity(state_dir: Path, device: str) -> Identity:
    """The same for every launcher of a device, so that one that restarts again and again leaves one row."""
    host = socket.gethostname()
    return Identity(id=f"launcher_{_digest(state_dir, device)}@{host}", kind="launcher", host=host, pid=os.getpid())


def _digest(state_dir: Path, *more: str) -> str:
    return hashlib.sha256("@".join([str(state_dir.resolve()), *more]).encode()).hexdigest()[:12]


def worker_status(context: WorkerContext, poll_seconds: float | None, now: float) -> Status:
    """The status of a consumer with engines; `now` is the monotonic clock's."""
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
        EngineReport(model=name, tick_seconds=served.engine.seconds_since_tick(now))
        for name, served in list(models.items())  # others may be added meanwhile
    ]


class WorkerHeartbeat:
    """Writes the row of this process, and removes it in the end. `on_turn` is called after each attempt to write it."""

    def __init__(
        self,
        identity: Identity,
        database: Database,
        status: Callable[[], Status],
        *,
        seconds: float,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._identity = identity
        self._database = database
        self._status = status
        self._seconds = seconds
        self._on_turn = on_turn
        self._reported: dict[tuple[str, str], int] = {}
        self._is_row_kept = False
        self._stop = threading.Event()
        self._is_due = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Report at once, so that the row is there before the process is called ready; then every `seconds`."""
        if self._stop.is_set():  # closed before it was started
            return
        self.report()
        self._thread.start()

    def report(self) -> None:
        """Report now, in this thread; a database that is away is logged."""
        self._try(self.beat)
        self._on_turn()

    def wake(self) -> None:
        """Report soon, in the thread of the heartbeat. Callable from any thread."""
        self._is_due.set()

    def claim_slot(self) -> None:
        """End the leases of the process that had this slot before, which has ended. Call it before any claim.

        If the database is away, those leases run out by themselves.
        """
        self._try(self._expire_predecessor)

    def _expire_predecessor(self) -> None:
        slot = self._identity.slot
        if slot is None:
            return
        with self._database.begin() as connection:
            num_jobs = len(connection.execute(jobs.end_leases(slot)).all())
            num_shards = len(connection.execute(shards.end_leases(slot)).all())
            connection.execute(workers.remove_predecessors(slot))
        if num_jobs or num_shards:
            log.warning("predecessor_leases_expired", slot=slot, jobs=num_jobs, shards=num_shards)

    def close(self, timeout_seconds: float = 1.0, *, is_row_kept: bool = False) -> None:
        """Remove the row, unless `is_row_kept`. If the database is away the row stays, and counts as lost after a while."""
        self._is_row_kept = is_row_kept
        self._stop.set()
        self._is_due.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def beat(self) -> None:
        """Report once. Public so that tests need no thread."""
        with self._lock:
            self._beat()

    def _beat(self) -> None:
        status, identity = self._status(), self._identity
        report = WorkerReport(
            id=identity.id,
            kind=identity.kind,
            host=identity.host,
            pid=identity.pid,
            poll_seconds=status.poll_seconds,
            engines=status.engines,
            device=status.device,
        )
        new = {key: total - self._reported.get(key, 0) for key, total in status.totals.items()}
        new = {key: number for key, number in new.items() if number}
        with self._database.begin() if new else self._database.autocommit() as connection:
            connection.execute(*workers.report_worker(report))
            if new:
                connection.execute(workers.add_counts(new))
        self._reported.update(status.totals)

    def _leave(self) -> None:
        self.beat()  # with the last counts
        if self._is_row_kept:
            return
        with self._database.begin() as connection:
            connection.execute(workers.remove_worker(self._identity.id))

    def _run(self) -> None:
        while not self._stop.is_set():
            self._is_due.wait(self._seconds)
            self._is_due.clear()
            if not self._stop.is_set():
                self.report()
        self._try(self._leave)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except SQLAlchemyError as error:
            log.warning("heartbeat_failed", reason=type(error).__name__)
