"""Numbers of what lives elsewhere: workers, clerks and engines have no port, so their rows tell, when somebody asks.

Read at most every few seconds, however often and by however many is asked; a database that is away leaves them as they were.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from core.counters import CounterName
from core.readiness import WorkerSeen, check_workers
from core.settings import Settings
from db import backlog, quarantine, webhooks, workers
from db.tables import WORKER_KINDS

_READ_SECONDS: Final = 1.0
_FRESH_SECONDS: Final = 5.0
_HELP: Final = {
    CounterName.LEASES_LOST: "Leases that another worker took over, or that nobody renewed in time.",
    CounterName.SHARDS_RETRIED: "Shards taken again: given back by a worker that left, or taken over from one that died.",
    CounterName.LINES_RETRIED: "Suspects: lines that were with an engine when it died, and run again alone.",
    CounterName.LINES_BLOCKED: "Lines that failed with engine_crash: engines kept dying of them.",
    CounterName.ENGINE_DEATHS: "Engines that ended though nobody asked them to.",
    CounterName.EVENTS_DROPPED: "Events of running jobs that did not reach the broker; their rows tell the same later.",
}
_OF_NO_MODEL: Final = {CounterName.LEASES_LOST, CounterName.EVENTS_DROPPED}


@dataclass(frozen=True, slots=True)
class _Numbers:
    """As read last."""

    backlog: Any = None  # Any: a row of `db.backlog`
    webhooks: Any = None  # Any: a row of `db.webhooks.delivery_counts`
    workers: Sequence[WorkerSeen] = ()
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    degraded: dict[str, str] = field(default_factory=dict)
    accused: dict[tuple[str, bool], int] = field(default_factory=dict)


class ServiceMetrics(Collector):
    """A collector of what `refresh` read."""

    def __init__(self, settings: Settings) -> None:
        self._places = {"state": settings.state_dir, "files": settings.files_root}
        self._silence_seconds = settings.silence_seconds
        self._most_crashes = settings.engine_crashes
        self._models: Sequence[str] = ()
        self._numbers: _Numbers | None = None
        self._read_at = -_FRESH_SECONDS
        self._lock = asyncio.Lock()

    async def refresh(self, database: AsyncEngine, models: Sequence[str]) -> None:
        """Read again what is not fresh. `models` are those that are to be served."""
        self._models = models
        async with self._lock:
            if time.monotonic() - self._read_at < _FRESH_SECONDS:
                return
            try:
                async with asyncio.timeout(_READ_SECONDS), database.connect() as connection:
                    self._numbers = await _read(connection, self._most_crashes)
            except (SQLAlchemyError, OSError):  # TimeoutError is one
                return
            self._read_at = time.monotonic()

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """In the library's form; nothing of the database before it was read once."""
        yield _gauge("disk_free_bytes", "Free on the disk of each place of this host.", "place", self._free_bytes())
        if self._numbers is not None:
            yield from self._of_rows(self._numbers)

    def _of_rows(self, numbers: _Numbers) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        yield from _backlog(numbers.backlog)
        yield from _webhooks(numbers.webhooks)
        yield from _counts(numbers.counts)
        yield _accused(numbers.accused)
        fresh = {(w.kind, w.id) for w in numbers.workers if w.seen_seconds <= self._silence_seconds}
        kinds = Tally(kind for kind, _ in fresh)
        yield _gauge("workers", "Processes that report, by kind.", "kind", {kind: kinds[kind] for kind in WORKER_KINDS})
        checks = check_workers(numbers.workers, self._models, self._silence_seconds, numbers.degraded)
        ready = {c.name.removeprefix("model "): float(not c.message) for c in checks if c.name.startswith("model ")}
        yield _gauge("model_ready", "1: workers and an engine serve this model, as /readyz says.", "model", ready)

    def _free_bytes(self) -> dict[str, float]:
        return {name: shutil.disk_usage(path).free for name, path in self._places.items() if path.exists()}


async def degraded_models(connection: AsyncConnection, most_crashes: int) -> dict[str, str]:
    """Models whose engine keeps ending and nobody knows of what, so that it is restarted only seldom: name -> why."""
    rows = await connection.execute(quarantine.degraded_models(most_crashes, quarantine.CRASH_WINDOW))
    return {
        model: f"its engine ended {crashes} times in 10 minutes, no request explains it" for model, _, crashes in rows
    }


async def _read(connection: AsyncConnection, most_crashes: int) -> _Numbers:
    rows = (await connection.execute(workers.list_workers())).mappings().all()
    return _Numbers(
        backlog=(await connection.execute(backlog.backlog())).one(),
        webhooks=(await connection.execute(webhooks.delivery_counts())).one(),
        workers=[WorkerSeen(**row) for row in rows],
        counts={(name, model): value for name, model, value in await connection.execute(workers.read_counts())},
        degraded=await degraded_models(connection, most_crashes),
        accused={(model, bad): n for model, bad, n in await connection.execute(quarantine.count_quarantined())},
    )


def _backlog(row: Any) -> Iterator[GaugeMetricFamily]:  # Any: a row of `db.backlog`
    waiting = {"chat": row.chats, "batch": row.lines, "clerk": row.clerk_batches}
    yield _gauge("waiting", "Chat jobs, lines, and batches for the clerk, that nobody has ended.", "class", waiting)
    ages = {"chat": row.chat_seconds, "batch": row.line_seconds, "clerk": row.clerk_seconds}
    yield _gauge("oldest_waiting_seconds", "How long the first that waits has waited.", "class", ages)
    yield _gauge("leases", "Leases that are held.", "class", {"chat": row.job_leases, "batch": row.shard_leases})


def _webhooks(row: Any) -> Iterator[GaugeMetricFamily]:  # Any: a row of `db.webhooks.delivery_counts`
    states = {name: getattr(row, name) for name in ("waiting", "retrying", "delivered", "given_up")}
    told = "Webhook events of all tenants: waiting (some of them retrying), delivered, given up."
    yield _gauge("webhook_events", told, "state", states)
    oldest = GaugeMetricFamily("millrace_webhook_oldest_seconds", "Age of the oldest webhook event that waits.")
    oldest.add_metric([], float(row.oldest))
    yield oldest


def _counts(values: dict[tuple[str, str], int]) -> Iterator[CounterMetricFamily]:
    """Each is there from the start, since what has no past cannot be seen to rise."""
    for count in CounterName:
        labels = [] if count in _OF_NO_MODEL else ["model"]
        family = CounterMetricFamily(f"millrace_{count}", _HELP[count], labels=labels)
        known = {model: value for (name, model), value in values.items() if name == count}
        for model, value in (known or ({} if labels else {"": 0})).items():
            family.add_metric([model] if labels else [], value)
        yield family


def _accused(numbers: dict[tuple[str, bool], int]) -> GaugeMetricFamily:
    told = "Requests that engines ended with, lately: suspects, and those that are refused since they did it alone."
    family = GaugeMetricFamily("millrace_accused_requests", told, labels=["model", "state"])
    for (model, is_convicted), number in numbers.items():
        family.add_metric([model, "refused" if is_convicted else "suspect"], number)
    return family


def _gauge(name: str, told: str, label: str, values: dict[str, Any]) -> GaugeMetricFamily:  # Any: numbers of any kind
    family = GaugeMetricFamily(f"millrace_{name}", told, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
