"""Feeds of batches: the changes of a tenant's batches, read once for all its streams in this process.

A feed polls while it has subscribers. A poll first asks, in one small statement, whether anything may have changed. The batches
are read if so, and else so rarely that a feed at rest uses no more than `_SHARE_AT_REST` of a core. A feed keeps the last object
of each batch that it follows, and passes on those that differ. All is read from rows, so every api process has the same feed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.lookup import with_totals
from api.http.sse import encode_event
from api.services.model_states import ModelStates
from core.errors import Problem, unavailable
from core.schemas.objects import BatchObject
from core.states import FINAL_BATCH_STATES
from db import batch_lists

log = structlog.get_logger()

_POLL_SECONDS: Final = 0.8  # with the time of the read, an event is at most a second behind the database
_RECENT: Final = timedelta(seconds=10)  # batches changed so long ago are in the first read
_OVERLAP: Final = timedelta(
    seconds=2
)  # a transaction commits after the time that it writes; batches that are followed may take longer
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_OPEN: Final = 500  # of the batches that wait; those that run are all followed
_MAX_RECENT: Final = 500
_SHARE_AT_REST: Final = 0.005
_SHARE_AT_WORK: Final = 0.2
_MOMENTS: Final = ("eta_at", "model_ready_at")
_SHOWN: Final = tuple(name for name in BatchObject.model_fields if name not in (*_MOMENTS, "tokens_per_second"))
_SMALL_PART: Final = 0.05
_UNREADABLE: Final = unavailable("The batches cannot be read at the moment. Connect again shortly.").problem


class Subscription:
    """The events that one stream has not sent yet: the last of each batch, so a slow reader holds no more than these."""

    def __init__(self, wake: Callable[[], None], events: dict[str, bytes]) -> None:
        self._wake = wake
        self._events = events
        self.failure: Problem | None = None

    def put(self, events: dict[str, bytes]) -> None:
        """Add events, by the ids of their batches."""
        self._events |= events
        self._wake()

    def fail(self, failure: Problem) -> None:
        """Let the stream end with a problem."""
        self.failure = failure
        self._wake()

    def take(self) -> bytes:
        """The events since the last call, in the order in which the batches were created."""
        taken, self._events = self._events, {}
        return b"".join(taken[batch_id] for batch_id in sorted(taken))


class BatchFeeds:
    """The feeds of a process, one for each tenant that has a subscriber."""

    def __init__(self, database: AsyncEngine, states: ModelStates, poll_seconds: float = _POLL_SECONDS) -> None:
        self._database = database
        self._states = states
        self._poll_seconds = poll_seconds
        self._feeds: dict[str, _Feed] = {}

    @contextmanager
    def subscribe(self, tenant: str, wake: Callable[[], None]) -> Iterator[Subscription]:
        """A subscription for the duration of the block; `wake` is called when it has something new.

        It begins with the batches that have not ended, and those that were changed in the last seconds.
        """
        feed = self._feeds.get(tenant)
        if feed is None or feed.has_failed:
            feed = self._feeds[tenant] = _Feed(self._database, self._states, tenant, self._poll_seconds)
        subscription = feed.add(wake)
        try:
            yield subscription
        finally:
            if feed.remove(subscription) and self._feeds.get(tenant) is feed:
                del self._feeds[tenant]


class _Feed:
    """The feed of one tenant; its task runs from the first subscription to the end of the last."""

    def __init__(self, database: AsyncEngine, states: ModelStates, tenant: str, poll_seconds: float) -> None:
        self._database = database
        self._states = states
        self._tenant = tenant
        self._poll_seconds = poll_seconds
        self._subscriptions: set[Subscription] = set()
        self._known: dict[str, BatchObject] = {}
        self._read_at: datetime | None = None  # by the clock of the database
        self._rests_since = float("-inf")
        self._busy_seconds = 0.0  # of the last read
        self.has_failed = False
        self._task = asyncio.create_task(self._run(), name="batch_feed")

    def add(self, wake: Callable[[], None]) -> Subscription:
        """A new subscription, with the last event of each batch."""
        subscription = Subscription(wake, {key: _event(batch) for key, batch in self._known.items()})
        self._subscriptions.add(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> bool:
        """Forget a subscription; true if that was the last one, which ends the feed."""
        self._subscriptions.discard(subscription)
        if not self._subscriptions:
            self._task.cancel()
        return not self._subscriptions

    async def _run(self) -> None:
        try:
            while True:
                await self._poll()
                await asyncio.sleep(self._poll_seconds)
        except Exception as error:  # the edge of this task: the streams end, and their clients connect again
            log.warning("batch_feed_failed", reason=type(error).__name__)
            self.has_failed = True
            for subscription in self._subscriptions:
                subscription.fail(_UNREADABLE)

    async def _poll(self) -> None:
        begun_at, begun_cpu = time.monotonic(), time.thread_time()
        async with self._database.connect() as connection:
            since = _LONG_AGO if self._read_at is None else self._read_at - _OVERLAP
            news = await batch_lists.batch_news(self._tenant, since).async_fetch_one(connection)
            share = _SHARE_AT_WORK if news.has_news else _SHARE_AT_REST
            if (begun_at - self._rests_since) * share < self._busy_seconds:
                return
            is_first = self._read_at is None
            followed = [batch.id for batch in self._known.values() if batch.status not in FINAL_BATCH_STATES]
            statement = batch_lists.live_batches(
                self._tenant,
                since=news.now - _RECENT if is_first else since,
                known=followed,
                most_open=_MAX_OPEN,
                most_changed=_MAX_RECENT if is_first else None,
            )
            rows = await statement.async_fetch_all(connection)
            batches = await with_totals(connection, rows, self._states)
        self._read_at = news.now
        self._pass_on({batch.id: batch for batch in batches}, news.now.timestamp())
        self._rests_since, self._busy_seconds = time.monotonic(), time.thread_time() - begun_cpu

    def _pass_on(self, batches: dict[str, BatchObject], now: float) -> None:
        """Put the batches that differ from those passed on before."""
        before, self._known = self._known, {}
        changed = {}
        for batch_id, batch in batches.items():
            known = before.get(batch_id)
            if known is None or has_changed(known, batch, now):
                changed[batch_id] = _event(batch)
                known = batch
            self._known[batch_id] = known
        if changed:
            for subscription in self._subscriptions:
                subscription.put(changed)


def has_changed(before: BatchObject, after: BatchObject, now: float) -> bool:
    """Is there a difference worth an event? Estimates move with every read, and count from 5 % of the rate or the time left."""
    if any(getattr(before, name) != getattr(after, name) for name in _SHOWN):
        return True
    rate = after.tokens_per_second
    return _has_moved(before.tokens_per_second, rate, rate or 0, least=0.01) or any(
        _has_moved(getattr(before, name), getattr(after, name), (getattr(after, name) or 0) - now, least=2)
        for name in _MOMENTS
    )


def _has_moved(before: float | None, after: float | None, size: float, *, least: float) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(after - before) >= max(least, _SMALL_PART * size)


def _event(batch: BatchObject) -> bytes:
    return encode_event(batch.model_dump_json().encode(), name="batch")
