"""Metrics of the whole service: read from the rows of the database, and the same from every api process.

The database is read at most every few seconds, whatever the number of scrapes; while it is down the last values stay.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.services.activity import engines_in_memory
from api.services.model_states import degraded_models
from core.counters import CounterName
from core.readiness import WorkerSeen, check_workers
from core.settings import Settings
from core.states import FINAL_BATCH_STATES, BatchState
from db import backlog, quarantine, webhooks, workers
from db.backlog import Backlog, ModelChats, ModelLines, OpenBatches
from db.tables import WORKER_KINDS
from db.webhooks import DeliveryCounts
from db.workers import DeviceSeen

_READ_SECONDS: Final = 1.0
_FRESH_SECONDS: Final = 5.0
_HELP: Final = {
    CounterName.LEASES_LOST: "Leases that another worker took over, or that were not renewed in time.",
    CounterName.SHARDS_RETRIED: "Shards taken again: released by a worker that stopped, or taken over from one that crashed.",
    CounterName.LINES_RETRIED: "Suspects: lines that an engine was running when it crashed, and that run again alone.",
    CounterName.LINES_BLOCKED: "Lines that failed with engine_crash: engines crashed on them repeatedly.",
    CounterName.ENGINE_DEATHS: "Engines that ended without being stopped.",
    CounterName.MODEL_LOADS: "Loads of a model into the memory of a device.",
    CounterName.MODEL_LOAD_FAILURES: "Loads that failed.",
    CounterName.MODEL_LOAD_MILLISECONDS: "Time of all loads, from the start of the engine to its first answer.",
    CounterName.MODEL_UNLOADS: "Models that left memory: for another one, unused, changed, or at an admin's request.",
    CounterName.PROMPT_TOKENS: "Tokens of prompts that engines took, also those from the prefix cache.",
    CounterName.CACHED_PROMPT_TOKENS: "Those of them that came from the prefix cache.",
    CounterName.GENERATED_TOKENS: "Tokens that engines generated.",
    CounterName.CHATS_COMPLETED: "Requests that are no batch lines and were answered.",
    CounterName.CHATS_FAILED: "Those that failed.",
    CounterName.CHATS_CANCELLED: "Those that were cancelled, as by a client that left.",
    CounterName.LINES_COMPLETED: "Lines that were answered.",
    CounterName.LINES_FAILED: "Lines that ran and failed.",
    CounterName.LINES_REJECTED: "Lines that failed before they ran, since their request is not valid.",
    CounterName.LINES_CANCELLED: "Lines that did not run, since their batch was cancelled.",
    CounterName.LINES_EXPIRED: "Lines that did not run within the window of their batch.",
    CounterName.BATCHES_COMPLETED: "Batches that ended with all their lines.",
    CounterName.BATCHES_FAILED: "Batches whose file is not valid.",
    CounterName.BATCHES_EXPIRED: "Batches whose window was over.",
    CounterName.BATCHES_CANCELLED: "Batches that were cancelled.",
    CounterName.TICKETS_RESENT: "Tickets sent again for work that had not begun: the first was lost, or workers are busy.",
    CounterName.EVENTS_DROPPED: "Events of running jobs that did not reach the broker; streams recover from the rows.",
}
_OF_ENGINES: Final = {
    "model_slots": ("Slots of the engines of a model; of a server upstream, requests that it gets at a time.", "slots"),
    "model_running": ("Sequences in slots, or requests at a server upstream.", "num_running"),
    "model_engine_waiting": ("Sequences in engines without a slot.", "num_waiting"),
    "model_kv_tokens": ("Tokens in the KV cache that running sequences hold.", "kv_tokens"),
    "model_kv_reusable_tokens": (
        "Tokens in the KV cache of ended sequences, which may be reused.",
        "kv_reusable_tokens",
    ),
    "model_kv_total_tokens": ("Tokens that the KV cache has room for.", "kv_total_tokens"),
    "model_prompt_tokens_per_second": ("Tokens of prompts in the last five seconds.", "prompt_tokens_per_second"),
    "model_generated_tokens_per_second": ("Tokens generated in the last five seconds.", "output_tokens_per_second"),
}
_WITHOUT_MODEL: Final = {
    CounterName.LEASES_LOST,
    CounterName.LINES_REJECTED,
    CounterName.LINES_CANCELLED,
    CounterName.LINES_EXPIRED,
    CounterName.BATCHES_COMPLETED,
    CounterName.BATCHES_FAILED,
    CounterName.BATCHES_EXPIRED,
    CounterName.BATCHES_CANCELLED,
    CounterName.TICKETS_RESENT,
    CounterName.EVENTS_DROPPED,
}
_OPEN_STATUSES: Final = tuple(status for status in BatchState if status not in FINAL_BATCH_STATES)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Values of the last read."""

    backlog: Backlog
    webhooks: DeliveryCounts
    workers: Sequence[WorkerSeen]
    counts: dict[tuple[str, str], int]
    degraded: dict[str, str]
    quarantined: dict[tuple[str, bool], int]
    devices: Sequence[DeviceSeen]
    chats: Sequence[ModelChats]
    lines: Sequence[ModelLines]
    batches: Sequence[OpenBatches]
    database_seconds: float


class ServiceMetrics(Collector):
    """Exports the values of the last `refresh`."""

    def __init__(self, settings: Settings) -> None:
        self._disks = {"state": settings.state_dir} | (
            {} if settings.files_root is None else {"files": settings.files_root}
        )
        self._silence_seconds = settings.silence_seconds
        self._max_crashes = settings.engine_crashes
        self._models: Sequence[str] = ()
        self._snapshot: _Snapshot | None = None
        self._is_database_up = False
        self._read_at = -_FRESH_SECONDS
        self._lock = asyncio.Lock()

    async def refresh(self, database: AsyncEngine, models: Sequence[str]) -> None:
        """Read the database when the last read is too old. `models` are the names in the catalog."""
        self._models = models
        async with self._lock:
            if time.monotonic() - self._read_at < _FRESH_SECONDS:
                return
            try:
                began = time.monotonic()
                async with asyncio.timeout(_READ_SECONDS), database.connect() as connection:
                    await connection.execute(select(1))
                    seconds = time.monotonic() - began
                    self._snapshot = await _read(connection, self._max_crashes, seconds)
            except (SQLAlchemyError, OSError):  # TimeoutError is one
                self._is_database_up = False
                return
            self._is_database_up = True
            self._read_at = time.monotonic()

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield metric families for prometheus_client; those of the database only after the first read."""
        disks = {name: shutil.disk_usage(path) for name, path in self._disks.items() if path.exists()}
        free, total = ({name: getattr(disk, kind) for name, disk in disks.items()} for kind in ("free", "total"))
        yield _gauge("disk_free_bytes", "Free on the disk of each place of this host.", "place", free)
        yield _gauge("disk_total_bytes", "Size of the disk of each place of this host.", "place", total)
        yield _number("database_up", "1: the last read of the database succeeded.", self._is_database_up)
        if self._snapshot is not None:
            yield from self._families(self._snapshot)

    def _families(self, snapshot: _Snapshot) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        text = "Time in which the database answered its last read, with the wait for a connection."
        yield _number("database_read_seconds", text, snapshot.database_seconds)
        yield from _backlog(snapshot.backlog)
        yield from _batches(snapshot.batches)
        yield from _webhooks(snapshot.webhooks)
        yield from _counts(snapshot.counts, self._models)
        yield _quarantined(snapshot.quarantined)
        yield from _devices(snapshot, self._silence_seconds)
        yield from _engines(engines_in_memory(snapshot.workers, self._silence_seconds))
        yield from _queues(snapshot, self._models)
        fresh = {(w.kind, w.id) for w in snapshot.workers if w.seen_seconds <= self._silence_seconds}
        kinds = Counter(kind for kind, _ in fresh)
        yield _gauge("workers", "Processes that report, by kind.", "kind", {kind: kinds[kind] for kind in WORKER_KINDS})
        checks = check_workers(snapshot.workers, self._models, self._silence_seconds, snapshot.degraded)
        ready = {c.name.removeprefix("model "): float(not c.message) for c in checks if c.name.startswith("model ")}
        yield _gauge("model_ready", "1: workers and an engine serve this model, as in /readyz.", "model", ready)


async def _read(connection: AsyncConnection, max_crashes: int, database_seconds: float) -> _Snapshot:
    counts = await workers.read_counts().async_fetch_all(connection)
    quarantined = await quarantine.count_quarantined().async_fetch_all(connection)
    return _Snapshot(
        backlog=await backlog.backlog().async_fetch_one(connection),
        webhooks=await webhooks.delivery_counts().async_fetch_one(connection),
        workers=await workers.list_workers().async_fetch_all(connection),
        counts={(row.name, row.model): row.value for row in counts},
        degraded=await degraded_models(connection, max_crashes),
        devices=await workers.list_devices().async_fetch_all(connection),
        quarantined={(row.model, row.is_blocked): row.requests for row in quarantined},
        chats=await backlog.chats_by_model().async_fetch_all(connection),
        lines=await backlog.lines_by_model().async_fetch_all(connection),
        batches=await backlog.open_batches().async_fetch_all(connection),
        database_seconds=database_seconds,
    )


def _backlog(row: Backlog) -> Iterator[GaugeMetricFamily]:
    waiting = {"chat": row.chats, "batch": row.lines, "clerk": row.clerk_batches}
    yield _gauge("waiting", "Chat jobs, lines, and batches for the clerk that have not ended.", "class", waiting)
    ages = {"chat": row.chat_seconds, "batch": row.line_seconds, "clerk": row.clerk_seconds}
    yield _gauge("oldest_waiting_seconds", "Age of the oldest of them.", "class", ages)
    yield _gauge("leases", "Leases that are held.", "class", {"chat": row.job_leases, "batch": row.shard_leases})


def _batches(rows: Sequence[OpenBatches]) -> Iterator[GaugeMetricFamily]:
    counts = {str(row.status): row.batches for row in rows}
    text = "Batches that have not ended, by status."
    yield _gauge("batches", text, "status", {str(status): counts.get(status, 0) for status in _OPEN_STATUSES})
    at_risk = sum(row.at_risk for row in rows)
    yield _number("batches_at_risk", "Batches that do not end within their windows at their present pace.", at_risk)
    soonest = GaugeMetricFamily(
        "millrace_batch_soonest_deadline_seconds", "Time until the first window ends of a batch with lines left."
    )
    left = [row.seconds_left for row in rows if row.seconds_left is not None]
    if left:
        soonest.add_metric([], min(left))
    yield soonest


def _webhooks(row: DeliveryCounts) -> Iterator[GaugeMetricFamily]:
    states = {name: getattr(row, name) for name in ("waiting", "retrying", "delivered", "given_up")}
    text = "Webhook events of all tenants: waiting (some of them retrying), delivered, given up."
    yield _gauge("webhook_events", text, "state", states)
    yield _number("webhook_oldest_seconds", "Age of the oldest waiting webhook event.", row.oldest)


def _counts(values: dict[tuple[str, str], int], models: Sequence[str]) -> Iterator[CounterMetricFamily]:
    """Export every counter from the start with 0: an increase from a missing series is invisible in Prometheus."""
    for count in CounterName:
        labels = [] if count in _WITHOUT_MODEL else ["model"]
        family = CounterMetricFamily(f"millrace_{count}", _HELP[count], labels=labels)
        by_model = {model: value for (name, model), value in values.items() if name == count}
        for model, value in {**dict.fromkeys(models if labels else [""], 0), **by_model}.items():
            family.add_metric([model] if labels else [], value)
        yield family


def _quarantined(values: dict[tuple[str, bool], int]) -> GaugeMetricFamily:
    text = "Requests running in recent engine crashes: suspects, and those refused since they crashed one alone."
    family = GaugeMetricFamily("millrace_quarantined_requests", text, labels=["model", "state"])
    for (model, is_blocked), value in values.items():
        family.add_metric([model, "refused" if is_blocked else "suspect"], value)
    return family


def _devices(snapshot: _Snapshot, silence_seconds: float) -> Iterator[GaugeMetricFamily]:
    """The memory of each device whose launcher reports, and the part of each model there."""
    memory = GaugeMetricFamily(
        "millrace_device_memory_bytes",
        "Memory of a device: total, free, budget of its models, and engines, the part that these need by their estimates.",
        labels=["host", "device", "memory"],
    )
    for seen in snapshot.devices:
        if seen.seen_seconds <= silence_seconds:
            values = {"total": seen.total_bytes, "free": seen.free_bytes, "budget": seen.budget_bytes}
            for name, value in {**values, "engines": seen.engine_bytes}.items():
                if value is not None:
                    memory.add_metric([seen.host, seen.device, name], float(value))
    yield memory
    models = GaugeMetricFamily(
        "millrace_model_memory_bytes", "Memory that a model needs on a device.", labels=["host", "device", "model"]
    )
    for engine in engines_in_memory(snapshot.workers, silence_seconds):
        labels = [engine.host, engine.device or "", engine.model or ""]
        models.add_metric(labels, float(engine.memory_bytes or 0))
    yield models


def _engines(engines: Sequence[WorkerSeen]) -> Iterator[GaugeMetricFamily]:
    """The work of the engines of each model now, as sums over all devices."""
    for name, (text, column) in _OF_ENGINES.items():
        numbers: Counter[str] = Counter()
        for engine in engines:
            numbers[engine.model or ""] += getattr(engine, column) or 0
        yield _gauge(name, text, "model", numbers)


def _queues(snapshot: _Snapshot, models: Sequence[str]) -> Iterator[GaugeMetricFamily]:
    """The work that waits for each model; 0 where there is none."""
    waiting = GaugeMetricFamily(
        "millrace_model_waiting",
        "Chat jobs that wait for a model, and lines without a result.",
        labels=["model", "class"],
    )
    oldest = GaugeMetricFamily(
        "millrace_model_oldest_waiting_seconds",
        "Age of the oldest waiting chat job, and the longest wait of a batch for a worker.",
        labels=["model", "class"],
    )
    chats, lines = {each.model: each for each in snapshot.chats}, {each.model: each for each in snapshot.lines}
    for model in sorted({*models, *chats, *lines}):
        chat, line = chats.get(model), lines.get(model)
        waiting.add_metric([model, "chat"], chat.waiting if chat else 0)
        waiting.add_metric([model, "batch"], line.lines if line else 0)
        oldest.add_metric([model, "chat"], chat.seconds if chat else 0)
        oldest.add_metric([model, "batch"], line.seconds if line else 0)
    yield waiting
    yield oldest


def _number(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"millrace_{name}", text, value=float(value))


def _gauge(name: str, text: str, label: str, values: dict[str, Any]) -> GaugeMetricFamily:  # Any: numbers of any kind
    family = GaugeMetricFamily(f"millrace_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family
