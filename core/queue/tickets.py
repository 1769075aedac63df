"""Sending of tickets: best effort, after the commit, without blocking for long. The sweeper sends lost ones again.

After a failure no ticket is sent for a moment, so that callers do not wait for an unreachable broker one after another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from core.queue.names import (
    CLERK_QUEUE,
    DELIVER,
    FINALIZE,
    PREPARE,
    RUN_CHAT,
    RUN_SHARDS,
    VALIDATE,
    batch_queue,
    chat_queue,
)

log = structlog.get_logger()

_BACK_OFF_SECONDS: Final = 1.0


class Tickets:
    """Sends ids to queues; each method returns whether the broker took the ticket."""

    def __init__(self, app: Celery, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._backs_off_until = clock()

    def prepare(self, batch_id: str) -> bool:
        """Ask a clerk to prepare a batch."""
        return self._send(PREPARE, batch_id, CLERK_QUEUE)

    def finalize(self, batch_id: str) -> bool:
        """Ask a clerk to write the result files of a batch."""
        return self._send(FINALIZE, batch_id, CLERK_QUEUE)

    def deliver(self, subject_id: str) -> bool:
        """Ask a clerk to send webhook events that are due; one is about this object."""
        return self._send(DELIVER, subject_id, CLERK_QUEUE)

    def validate(self, validation_id: str) -> bool:
        """Ask a clerk for a file validation; a request waits for it."""
        return self._send(VALIDATE, validation_id, CLERK_QUEUE)

    def run_shards(self, model: str) -> bool:
        """Ask a worker of this model to claim shards."""
        return self._send(RUN_SHARDS, model, batch_queue(model))

    def run_chat(self, job_id: str, model: str) -> bool:
        """Ask a worker of this model to claim this job."""
        return self._send(RUN_CHAT, job_id, chat_queue(model))

    def back_off(self) -> None:
        """Send no ticket for a moment, after a failure of the broker."""
        self._backs_off_until = self._clock() + _BACK_OFF_SECONDS

    @property
    def is_backing_off(self) -> bool:
        """Is no ticket sent for now?"""
        return self._clock() < self._backs_off_until

    def _send(self, task: str, argument: str, queue: str) -> bool:
        if self.is_backing_off:
            return False
        try:
            self._app.send_task(task, args=[argument], queue=queue, retry=False)
        except OperationalError as error:
            log.warning("ticket_lost", task=task, queue=queue, reason=str(error))
            self.back_off()
            return False
        return True
