"""Shard lanes: threads that claim and run one shard of a model after the other.

Two or three lanes of a model overlap, so that its engine always has lines to run.
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

_WATCHED_INTERVALS: Final = 3  # keep-alive intervals of the api, which repeats the message in each


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
        """Run shards until none is left to claim; return at once when all lanes are busy."""
        if self._is_draining or not self._free.acquire(blocking=False):
            return
        try:
            while not self._is_draining and (run := self._claim()) is not None:
                try:
                    run.run()
                finally:
                    with self._lock:
                        self._runs.discard(run)
        except SQLAlchemyError as error:  # the next ticket or poll tries again
            log.warning("claim_failed", model=self._served.model.name, reason=type(error).__name__)
        finally:
            self._free.release()

    def watch(self, line_id: str) -> None:
        """Stream this line, if it runs here now or soon. The api repeats the message while a client follows the line."""
        now = time.monotonic()
        self._watched_until = {watched: until for watched, until in self._watched_until.items() if until > now}
        self._watched_until[line_id] = now + _WATCHED_INTERVALS * self._context.settings.keep_alive_seconds
        with self._lock:
            runs = list(self._runs)
        for run in runs:
            run.watch(line_id)

    def _is_watched(self, line_id: str) -> bool:
        return self._watched_until.get(line_id, 0.0) > time.monotonic()

    def drain(self, *, abort: bool) -> None:
        """Claim no more shards and begin no more lines; with `abort`, stop running lines."""
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
            claim = statement.fetch_optional(connection)
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
        if self._is_draining:  # `drain` may have looked at the runs before this one was there
            run.stop(abort=False)
        return run
