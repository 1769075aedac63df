"""History: deletes batches and single requests `history_days` after their end, in small steps.

A pass goes through all that is old enough, and pauses after each sweep's share of time. Files, usage and what clients keep by
`store` stay.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Final

import structlog

from core.schemas.endpoints import ENDPOINTS
from db import history
from workers.context import ClerkContext

log = structlog.get_logger()

_PASS_SECONDS: Final = 3600  # from the end of a pass to the next one
_SWEEP_SECONDS: Final = 1.5  # a step takes less than half a second
_LINES: Final = 2000
_REQUESTS: Final = 500


class History:
    """Deletes old rows when it is swept; the clerk that leads the sweep has one."""

    def __init__(self, context: ClerkContext, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._clock = clock
        self._steps: Iterator[None] | None = None
        self._next_pass_at = clock()

    @property
    def is_due(self) -> bool:
        """Is a pass in progress, or is it time for the next one?"""
        is_time = self._steps is not None or self._clock() >= self._next_pass_at
        return bool(self._context.settings.history_days) and is_time

    def sweep(self) -> None:
        """Go on with a pass for some seconds, or begin one when it is time."""
        if not self.is_due:
            return
        now = self._clock()
        steps, self._steps = self._steps or self._pass(), None  # after an error the next pass begins afresh
        for _ in steps:
            if self._clock() - now >= _SWEEP_SECONDS:
                self._steps = steps
                return
        self._next_pass_at = self._clock() + _PASS_SECONDS

    def _pass(self) -> Iterator[None]:
        """Delete everything that is old enough; yield after each step."""
        with self._context.database.begin() as connection:
            age = timedelta(days=self._context.settings.history_days)
            ended_before = connection.execute(history.moment_before(age)).scalar_one()
        deleted: Counter[str] = Counter()
        for prefix in sorted({endpoint.id_prefix for endpoint in ENDPOINTS.values()}):
            yield from self._delete_requests(prefix, ended_before, deleted)
        while (batch_id := self._oldest_batch(ended_before)) is not None:
            yield from self._delete_batch(batch_id, deleted)
        if deleted.total():
            log.info("history_deleted", **deleted)

    def _delete_requests(self, prefix: str, ended_before: datetime, deleted: Counter[str]) -> Iterator[None]:
        after, is_last = prefix, False
        while not is_last:
            with self._context.database.begin() as connection:
                page = history.old_requests(after, prefix, ended_before, _REQUESTS).fetch_all(connection)
                removable = [row.id for row in page if row.is_removable]
                deleted["requests"] += connection.execute(history.delete_requests(removable)).rowcount
            after, is_last = (page[-1].id if page else after), len(page) < _REQUESTS
            yield

    def _oldest_batch(self, ended_before: datetime) -> str | None:
        with self._context.database.begin() as connection:
            return connection.execute(history.oldest_batch(ended_before)).scalar_one_or_none()

    def _delete_batch(self, batch_id: str, deleted: Counter[str]) -> Iterator[None]:
        num_lines = -1
        while num_lines:
            with self._context.database.begin() as connection:
                num_lines = connection.execute(history.delete_lines(batch_id, _LINES)).rowcount
            deleted["lines"] += num_lines
            yield
        with self._context.database.begin() as connection:
            deleted["batches"] += connection.execute(history.delete_batch(batch_id)).rowcount
