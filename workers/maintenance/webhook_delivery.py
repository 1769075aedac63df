"""Webhook dispatcher: the clerk sends recorded events, with retries, until the receiver answers 2xx or their time is over.

Delivery is at least once: an event whose clerk ended between sending and recording is sent again, with the same id.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import Update
from sqlalchemy.exc import SQLAlchemyError

from core.failpoints import Point, failpoint
from core.queue.events import Event, outcome_event
from core.settings import Settings
from db import webhooks
from db.webhooks import DueDelivery
from workers.context import Database
from workers.maintenance.webhook_sender import SEND_SECONDS, SendResult, WebhookRequest, WebhookSender
from workers.runtime.clerk_metrics import WEBHOOK_ATTEMPTS
from workers.runtime.recorder import Recorder

log = structlog.get_logger()

LEASE: Final = timedelta(seconds=30)  # an attempt takes far less
_MAX_CONCURRENT: Final = 32
_FIRST_PAUSE_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 3600.0
_KEPT: Final = timedelta(days=7)
_CLEANUP_SECONDS: Final = 600.0


def retry_delay(attempt: int, jitter: Callable[[], float] = random.random) -> timedelta:
    """The pause after the given attempt (from 1): 5 s, doubling to an hour, minus up to half of it.

    The jitter spreads out the events of one failure.
    """
    longest = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 1, 20), _LONGEST_PAUSE_SECONDS)
    return timedelta(seconds=longest * (1 - jitter() / 2))


class WebhookDispatcher:
    """Sends due events, many at once, in a thread of its own; any number of clerks may have one."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        sender: WebhookSender,
        publish: Callable[[Event], None],
        recorder: Recorder | None = None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._sender = sender
        self._publish = publish
        self._recorder = recorder or Recorder()
        self._max_age = timedelta(hours=settings.webhook_hours)
        self._claim_due = webhooks.claim_due(LEASE, _MAX_CONCURRENT)
        self._is_stopping = False
        self._wake = threading.Event()
        self._cleanup_at = 0.0
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Start the thread, which first sends what became due while no clerk ran."""
        self._thread.start()

    def wake(self) -> None:
        """Look for due events now."""
        self._wake.set()

    def close(self) -> None:
        """Finish the running attempts; the next clerk sends the rest."""
        self._is_stopping = True
        self._wake.set()
        self._thread.join(timeout=SEND_SECONDS + 1)
        self._sender.close()

    def _run(self) -> None:
        while not self._is_stopping:
            self._wake.clear()
            try:
                while not self._is_stopping and self.deliver_due():
                    pass
                self._clean_up()
            except SQLAlchemyError as error:
                log.warning("webhook_dispatch_failed", reason=type(error).__name__)
            except Exception as error:  # the edge of this thread: due events stay due
                log.error("webhook_dispatch_failed", exc_info=error)
            self._wake.wait(self._settings.sweep_seconds)

    def deliver_due(self) -> int:
        """Try due events once, up to a limit; returns how many there were."""
        with self._database.autocommit() as connection:
            due = self._claim_due.fetch_all(connection)
        if due:
            failpoint(Point.WEBHOOK_CLAIMED)
            asyncio.run(self._deliver_all(due))
        return len(due)

    async def _deliver_all(self, due: Sequence[DueDelivery]) -> None:
        async with asyncio.TaskGroup() as group:
            for row in due:
                group.create_task(self._deliver(row))

    async def _deliver(self, row: DueDelivery) -> None:
        """Send one event and record its result at once, without waiting for slower receivers."""
        secrets = (row.secret, row.old_secret) if row.old_secret else (row.secret,)
        request = WebhookRequest(event_id=row.event_id, url=row.url, secrets=secrets, payload=row.payload)
        try:
            result = await self._sender.send(request)
        except Exception as error:  # a fault of this event alone: the others go on, and it is given up in time
            log.error("webhook_broken", event_id=row.event_id, exc_info=error)
            result = SendResult(error="The request could not be made.")
        try:
            await asyncio.to_thread(self._record, row, result)
        except SQLAlchemyError as error:
            log.warning("webhook_not_recorded", event_id=row.event_id, reason=type(error).__name__)

    def _record(self, row: DueDelivery, result: SendResult) -> None:
        delay = retry_delay(row.attempt)
        is_last = row.is_test or timedelta(seconds=row.age_seconds) + delay > self._max_age
        status, error = result.status_code, result.error
        if error is None or is_last:
            statement = webhooks.finish(
                row.event_id, row.webhook_id, row.attempt, is_delivered=error is None, status_code=status, error=error
            )
        else:
            statement = webhooks.postpone(
                row.event_id, row.webhook_id, row.attempt, delay=delay, status_code=status, error=error
            )
        committing, committed = Point.WEBHOOK_RECORDING, Point.WEBHOOK_RECORDED
        with self._database.begin(committing=committing, committed=committed) as connection:
            if connection.execute(statement).one_or_none() is not None and not row.is_test:
                connection.execute(_mark(row.webhook_id, error, is_given_up=is_last))
        if row.is_test:
            self._publish(outcome_event(row.event_id))
        outcome = "delivered" if error is None else "given_up" if is_last else "failed"
        self._recorder.add(WEBHOOK_ATTEMPTS, (outcome,))
        log.info(f"webhook_{outcome}", event_id=row.event_id, webhook=row.webhook_id, attempt=row.attempt, reason=error)

    def _clean_up(self) -> None:
        """Every ten minutes, delete deliveries that ended long ago."""
        if time.monotonic() < self._cleanup_at:
            return
        self._cleanup_at = time.monotonic() + _CLEANUP_SECONDS
        with self._database.begin() as connection:
            connection.execute(webhooks.delete_finished(_KEPT))


def _mark(webhook_id: str, error: str | None, *, is_given_up: bool) -> Update:
    return (
        webhooks.mark_succeeded(webhook_id)
        if error is None
        else webhooks.mark_failing(webhook_id, error, is_given_up=is_given_up)
    )
