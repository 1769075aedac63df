"""Webhooks: events are written down in the transaction in which they happen, and sent by the clerk until they are taken.

At least once: an event that was sent by a clerk that died before it could say so is sent again, with the same id.
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

log = structlog.get_logger()

LEASE: Final = timedelta(seconds=30)  # an attempt takes far less
_PLACES: Final = 32
_FIRST_PAUSE_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 3600.0
_KEPT: Final = timedelta(days=7)
_FORGET_SECONDS: Final = 600.0


def retry_delay(attempt: int, jitter: Callable[[], float] = random.random) -> timedelta:
    """How long to wait after the given attempt (from 1): 5 s, doubling to an hour, of which up to half is left out.

    The jitter keeps the events of one failure from coming back as one crowd.
    """
    longest = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(attempt - 1, 20), _LONGEST_PAUSE_SECONDS)
    return timedelta(seconds=longest * (1 - jitter() / 2))


class WebhookDispatcher:
    """Sends what is due, many at a time, in a thread of its own; any number of clerks may have one."""

    def __init__(
        self, settings: Settings, database: Database, poster: WebhookSender, publish: Callable[[Event], None]
    ) -> None:
        self._settings = settings
        self._database = database
        self._poster = poster
        self._publish = publish
        self._patience = timedelta(hours=settings.webhook_hours)
        self._is_stopping = False
        self._wake = threading.Event()
        self._forget_at = 0.0
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        """Begin, with what was due while nobody was there."""
        self._thread.start()

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def close(self) -> None:
        """Finish what is being sent; what cannot be is sent by the next clerk."""
        self._is_stopping = True
        self._wake.set()
        self._thread.join(timeout=SEND_SECONDS + 1)
        self._poster.close()

    def _run(self) -> None:
        while not self._is_stopping:
            self._wake.clear()
            try:
                while not self._is_stopping and self.deliver_due():
                    pass
                self._forget()
            except SQLAlchemyError as error:
                log.warning("courier_failed", reason=type(error).__name__)
            except Exception as error:  # the edge of this thread: what is due stays due
                log.error("courier_failed", exc_info=error)
            self._wake.wait(self._settings.sweep_seconds)

    def deliver_due(self) -> int:
        """Try everything that is due once, up to a limit; how many that were."""
        with self._database.begin() as connection:
            due = webhooks.claim_due(LEASE, _PLACES).fetch_all(connection)
        if due:
            failpoint(Point.WEBHOOK_CLAIMED)
            asyncio.run(self._deliver_all(due))
        return len(due)

    async def _deliver_all(self, due: Sequence[DueDelivery]) -> None:
        async with asyncio.TaskGroup() as group:
            for row in due:
                group.create_task(self._deliver(row))

    async def _deliver(self, row: DueDelivery) -> None:
        """Each outcome is written at once: a slow neighbour must not have it forgotten."""
        secrets = (row.secret, row.old_secret) if row.old_secret else (row.secret,)
        letter = WebhookRequest(event_id=row.event_id, url=row.url, secrets=secrets, payload=row.payload)
        try:
            outcome = await self._poster.post(letter)
        except Exception as error:  # this event's own trouble: the others go on, and it is given up in time
            log.error("webhook_broken", event_id=row.event_id, exc_info=error)
            outcome = SendResult(error="The request could not be made.")
        try:
            await asyncio.to_thread(self._record, row, outcome)
        except SQLAlchemyError as error:
            log.warning("webhook_not_recorded", event_id=row.event_id, reason=type(error).__name__)

    def _record(self, row: DueDelivery, outcome: SendResult) -> None:
        delay = retry_delay(row.attempt)
        is_last = row.is_test or timedelta(seconds=row.age_seconds) + delay > self._patience
        status, error = outcome.status_code, outcome.error
        if error is None or is_last:
            statement = webhooks.finish(
                row.event_id, row.webhook_id, row.attempt, is_delivered=error is None, status_code=status, error=error
            )
        else:
            statement = webhooks.postpone(
                row.event_id, row.webhook_id, row.attempt, delay=delay, status_code=status, error=error
            )
        with self._database.begin() as connection:
            if connection.execute(statement).one_or_none() is not None and not row.is_test:
                connection.execute(_mark(row.webhook_id, error, is_given_up=is_last))
            failpoint(Point.WEBHOOK_RECORDING)
        failpoint(Point.WEBHOOK_RECORDED)
        if row.is_test:
            self._publish(outcome_event(row.event_id))
        event = "webhook_delivered" if error is None else "webhook_given_up" if is_last else "webhook_failed"
        log.info(event, event_id=row.event_id, webhook=row.webhook_id, attempt=row.attempt, reason=error)

    def _forget(self) -> None:
        """Now and then: what ended long ago."""
        if time.monotonic() < self._forget_at:
            return
        self._forget_at = time.monotonic() + _FORGET_SECONDS
        with self._database.begin() as connection:
            connection.execute(webhooks.delete_finished(_KEPT))


def _mark(webhook_id: str, error: str | None, *, is_given_up: bool) -> Update:
    return (
        webhooks.mark_succeeded(webhook_id)
        if error is None
        else webhooks.mark_failing(webhook_id, error, is_given_up=is_given_up)
    )
