"""Demand: the work that waits for models, which a launcher reads from the database every second.

A look costs more where more shards are open, so many launchers look less often: see `poll_seconds`.

A message on the channel `wanted`, with the name of a model, hurries the next look: the api sends it when a live job is queued for
a model that is not ready. It also counts as a wish for a model that has failed, whose requests the api refuses. The database is
the truth; without it the last look stays.

The thread also writes for the launcher, whose own loop never waits for the database.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy import Connection, Executable
from sqlalchemy.exc import SQLAlchemyError

from core.states import EngineState
from db import demand, workers
from db.workers import EngineReport, WorkerReport
from workers.context import Database

log = structlog.get_logger()

_POLL_SECONDS: Final = 1.0
_MAX_POLL_SECONDS: Final = 15.0
_DATABASE_SHARE: Final = 0.5  # of one core of the database, which the looks of all launchers may take
_WISH_SECONDS: Final = 3.0  # for which a message counts; the row of its job comes with the next look
_IN_MEMORY: Final = (EngineState.LOADING, EngineState.READY)
_STOPPED: Final = (EngineState.FAILED, EngineState.MISSING)

Task = Callable[[Connection], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminRequest:
    """An admin's request for a model, by the monotonic clock. `load_at` identifies an open load."""

    load_at: datetime | None
    load_since: float | None
    unload_since: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What waits at the time of a look, by model. `chats` are the times since when, by the monotonic clock.

    `batches` are the highest priorities of batches with shards to take, and `shards` the numbers of these.
    `pins` are the models that admins have pinned, the oldest pin first. `others` are the states of each model at the other
    launchers, by their ids.
    """

    chats: Mapping[str, float] = field(default_factory=dict)
    batches: Mapping[str, int] = field(default_factory=dict)
    shards: Mapping[str, int] = field(default_factory=dict)
    admins: Mapping[str, AdminRequest] = field(default_factory=dict)
    pins: tuple[str, ...] = ()
    others: Mapping[str, Mapping[str, EngineState]] = field(default_factory=dict)

    def is_elsewhere(self, model: str) -> bool:
        """Does another launcher have the model in memory, or load it?"""
        return self.num_elsewhere(model) > 0

    def num_elsewhere(self, model: str) -> int:
        """Count the other launchers that have the model in memory, or load it."""
        return sum(state in _IN_MEMORY for state in self.others.get(model, {}).values())

    def may_be_served_elsewhere(self, model: str) -> bool:
        """Does another launcher have the model, or can it load it?"""
        return any(state not in _STOPPED for state in self.others.get(model, {}).values())


def poll_seconds(look_seconds: float, launchers: int) -> float:
    """Return the pause after a look that took so long, so that the looks of all launchers keep half a core busy at most."""
    return min(max(_POLL_SECONDS, look_seconds * launchers / _DATABASE_SHARE), _MAX_POLL_SECONDS)


class DemandReader(threading.Thread):
    """Looks at the database again and again; calls `on_change` after each look that finds a change, and after each task."""

    def __init__(
        self,
        database: Database,
        launcher_id: str,
        silence_seconds: float,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="demand", daemon=True)
        self._database = database
        self._launcher_id = launcher_id
        self._silence = timedelta(seconds=silence_seconds)
        self._statement = demand.LookStatement(launcher_id, self._silence)
        self._on_change = on_change
        self._clock = clock
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._wished: dict[str, float] = {}
        self._is_closing = False
        self.waiting = Waiting()
        self.looked_at: float | None = None
        self.reservations: dict[str, bool] = {}  # answers to `reserve`, which the launcher takes out

    def wish(self, model: str) -> None:
        """Look again now: a live job was queued, or refused, for this model. Callable from any thread."""
        self._wished = {**self._wished, model: self._clock()}
        self._tasks.put(None)

    def write(self, statement: Executable) -> None:
        """Execute a statement in a transaction of its own, in the thread; an error of the database is logged."""
        self._tasks.put(lambda: self._in_transaction(lambda connection: connection.execute(statement)))

    def call(self, action: Callable[[], None]) -> None:
        """Call an action, which opens its own transactions, in the thread; an error of the database is logged."""
        self._tasks.put(action)

    def reserve(self, model: str, memory_bytes: int, *, most: int | None = 1) -> None:
        """Find out whether this launcher may load the model: fewer than `most` others have it in memory, or load it."""
        self._tasks.put(lambda: self._reserve(model, memory_bytes, most))

    def close(self) -> None:
        """Stop the thread after the task in progress."""
        self._is_closing = True
        self._tasks.put(None)

    def run(self) -> None:
        while not self._is_closing:
            began_at, before = self._clock(), self.waiting
            self._try(self._look)
            launchers = {launcher for states in self.waiting.others.values() for launcher in states}
            until = self._clock() + poll_seconds(self._clock() - began_at, 1 + len(launchers))
            if self.waiting != before:
                self._on_change()
            while (seconds := until - self._clock()) > 0 and not self._is_closing:
                with suppress(queue.Empty):
                    task = self._tasks.get(timeout=seconds)
                    if task is None:
                        break
                    self._try(task)
                    self._on_change()

    def _in_transaction(self, task: Task) -> None:
        with self._database.begin() as connection:
            task(connection)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except SQLAlchemyError as error:
            log.warning("demand_failed", reason=type(error).__name__)
        except Exception as error:  # the edge of this thread: the next look must come
            log.error("demand_failed", exc_info=error)

    def _look(self) -> None:
        now = self._clock()
        with self._database.autocommit() as connection:
            look = self._statement.fetch(connection)
        admins = {
            row.model: AdminRequest(
                load_at=row.load_at,
                load_since=None if row.load_seconds is None else now - row.load_seconds,
                unload_since=None if row.unload_seconds is None else now - row.unload_seconds,
            )
            for row in look.requests
        }
        others: dict[str, dict[str, EngineState]] = {}
        for row in look.others:
            others.setdefault(row.model, {})[row.launcher] = row.state
        self._wished = {model: since for model, since in self._wished.items() if now - since < _WISH_SECONDS}
        chats = {row.model: now - row.seconds for row in look.chats}
        self.waiting = Waiting(
            chats={**self._wished, **chats},
            batches={row.model: row.priority for row in look.shards},
            shards={row.model: row.shards for row in look.shards},
            admins=admins,
            pins=tuple(look.pins),
            others=others,
        )
        self.looked_at = now

    def _reserve(self, model: str, memory_bytes: int, most: int | None) -> None:
        is_granted = False
        try:
            with self._database.begin() as connection:
                connection.execute(demand.lock_reservations())
                rows = demand.other_engines(self._launcher_id, self._silence).fetch_all(connection)
                others = sum(row.model == model and row.state in _IN_MEMORY for row in rows)
                if most is not None and others >= most:
                    return
                engine = EngineReport(model=model, state=EngineState.LOADING, memory_bytes=memory_bytes)
                report = WorkerReport(id=self._launcher_id, kind="launcher", host="", pid=0, engines=[engine])
                connection.execute(*workers.report_engines(report))
            is_granted = True
        finally:
            self.reservations[model] = is_granted
