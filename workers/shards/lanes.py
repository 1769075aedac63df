"""The lanes of one model in a process: threads that take one shard after the other, and what is told to all of them.

Two or three lanes overlap so that slots never run dry.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.counters import CounterName
from core.failpoints import Point, failpoint
from db import shards
from workers.context import ServedModel, WorkerContext
from workers.shards.isolation import Isolation
from workers.shards.shard_run import ShardRun

log = structlog.get_logger()

_WATCHED_INTERVALS: Final = 3  # of the api's keep-alive, with which it says so again


class ShardLanes:
    """The lanes of one model in this process."""

    def __init__(self, context: WorkerContext, served: ServedModel, isolation: Isolation | None = None) -> None:
        self._context = context
        self._served = served
        self._isolation = isolation or Isolation()
        self._free = threading.Semaphore(context.settings.batch_lanes)
        self._lock = threading.Lock()
        self._runs: set[ShardRun] = set()
        self._watched_until: dict[str, float] = {}
        self._is_draining = False

    def work(self) -> None:
        """Take shards until there is none; returns at once when all lanes do that already."""
        if self._is_draining or not self._free.acquire(blocking=False):
            return
        try:
            while not self._is_draining and (run := self._claim()) is not None:
                try:
                    run.run()
                finally:
                    with self._lock:
                        self._runs.discard(run)
        except SQLAlchemyError as error:  # of the claim: the next ticket or poll tries again
            log.warning("claim_failed", model=self._served.model.name, reason=type(error).__name__)
        finally:
            self._free.release()

    def watch(self, line: str) -> None:
        """Somebody follows this line, which may run here now or soon; said again for as long as that is so."""
        now = time.monotonic()
        self._watched_until = {known: until for known, until in self._watched_until.items() if until > now}
        self._watched_until[line] = now + _WATCHED_INTERVALS * self._context.settings.keep_alive_seconds
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.watch(line)

    def _is_watched(self, line: str) -> bool:
        return self._watched_until.get(line, 0.0) > time.monotonic()

    def drain(self, *, abort: bool) -> None:
        """Begin nothing new; with `abort`, stop what runs."""
        self._is_draining = True
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.stop(abort=abort)

    def is_idle(self) -> bool:
        """Does no shard run here?"""
        with self._lock:
            return not self._runs

    def _claim(self) -> ShardRun | None:
        context = self._context
        statement = shards.claim_next_shard(self._served.model.name, context.owner, context.lease)
        with context.database.begin() as connection:
            claim = connection.execute(statement).one_or_none()
            if claim is not None:
                failpoint(Point.SHARD_CLAIMING)
        if claim is None:
            return None
        failpoint(Point.SHARD_CLAIMED)
        if claim.attempt > 1:
            context.counters.add(CounterName.SHARDS_RETRIED, self._served.model.name)
        log.info("shard_claimed", shard=claim.id, batch=claim.batch_id, fence=claim.fence)
        run = ShardRun(context, claim, self._served, self._is_watched, self._isolation)
        with self._lock:
            self._runs.add(run)
        return run
