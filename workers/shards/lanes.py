"""Shard lanes: threads that claim and run one shard of a model after the other.

Two or three lanes of a model overlap, so that its engine always has lines to run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.counters import CounterName
from core.failpoints import Point, failpoint
from core.telemetry.origin import Origin
from db import shards
from workers.context import ServedModel, WorkerContext
from workers.shards.isolation import Isolation
from workers.shards.shard_run import ShardRun

log = structlog.get_logger()

_WATCHED_INTERVALS: Final = 3  # keep-alive intervals of the api, which repeats the message in each


class ShardLanes:
    """The lanes of one model in this process. `on_begin` is called when one begins to claim shards."""

    def __init__(
        self,
        context: WorkerContext,
        served: ServedModel,
        isolation: Isolation | None = None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_begin = on_begin
        self._context = context
        self._served = served
        self._isolation = isolation or Isolation()
        self._lock = threading.Lock()
        self._runs: set[ShardRun] = set()
        self._num_working = 0
        self.num_claimed = 0
        self._watched_until: dict[str, float] = {}
        self._is_draining = False
        self._is_aborting = False

    def work(self) -> None:
        """Run shards until none is left to claim; return at once when all lanes are busy."""
        if not self._enter():
            return
        self._on_begin()
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
            with self._lock:
                self._num_working -= 1

    def _enter(self) -> bool:
        """Take a free lane."""
        with self._lock:
            if self._is_draining or self._num_working == self._context.settings.batch_lanes:
                return False
            self._num_working += 1
            return True

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
        with self._lock:
            self._is_draining, self._is_aborting = True, self._is_aborting or abort
            runs = list(self._runs)
        for run in runs:
            run.stop(abort=abort)

    def is_idle(self) -> bool:
        """Does no shard run here, and is none being claimed?"""
        return not self._num_working

    def num_running(self) -> int:
        """Count the lines that run here; at least 1 while a shard is claimed or being claimed."""
        with self._lock:
            return max(self._num_working, sum(run.num_running for run in self._runs))

    def _claim(self) -> ShardRun | None:
        context = self._context
        statement = shards.claim_next_shard(self._served.model.name, context.owner, context.lease)
        failpoint(Point.SHARD_CLAIMING)
        with context.database.autocommit() as connection:
            claim = statement.fetch_optional(connection)
        if claim is None:
            return None
        failpoint(Point.SHARD_CLAIMED)
        if claim.attempt > 1:
            context.counters.add(CounterName.SHARDS_RETRIED, self._served.model.name)
        fields = Origin.from_json(claim.origin_json).log_fields()
        log.info("shard_claimed", shard=claim.id, batch=claim.batch_id, fence=claim.fence, **fields)
        run = ShardRun(context, claim, self._served, self._is_watched, self._isolation)
        with self._lock:
            self._runs.add(run)
            self.num_claimed += 1
        if self._is_draining:  # `drain` may have looked at the runs before this one was there
            run.stop(abort=self._is_aborting)
        return run
