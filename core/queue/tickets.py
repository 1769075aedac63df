"""Sending tickets: best effort, after the commit, never in anybody's way for long. The sweeper sends what got lost.

A broker that did not take one is left alone for a moment, so that not everybody waits for it in turn.
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
    """Sends ids to queues; every method says whether the broker took the ticket."""

    def __init__(self, app: Celery, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._backs_off_until = clock()

    def prepare(self, batch_id: str) -> bool:
        """A clerk shall read the batch's file."""
        return self._send(PREPARE, batch_id, CLERK_QUEUE)

    def finalize(self, batch_id: str) -> bool:
        """A clerk shall write the batch's files."""
        return self._send(FINALIZE, batch_id, CLERK_QUEUE)

    def deliver(self, subject_id: str) -> bool:
        """A clerk shall look for webhook events to send; one is about this object."""
        return self._send(DELIVER, subject_id, CLERK_QUEUE)

    def validate(self, validation_id: str) -> bool:
        """A clerk shall say what is wrong with a file; somebody waits."""
        return self._send(VALIDATE, validation_id, CLERK_QUEUE)

    def run_shards(self, model: str) -> bool:
        """A worker of this model shall look for shards."""
        return self._send(RUN_SHARDS, model, batch_queue(model))

    def run_chat(self, job_id: str, model: str) -> bool:
        """A worker of this model shall take this job."""
        return self._send(RUN_CHAT, job_id, chat_queue(model))

    def back_off(self) -> None:
        """The broker failed somebody: until a moment has passed, nothing is sent."""
        self._backs_off_until = self._clock() + _BACK_OFF_SECONDS

    def _send(self, task: str, argument: str, queue: str) -> bool:
        if self._clock() < self._backs_off_until:
            return False
        try:
            self._app.send_task(task, args=[argument], queue=queue, retry=False)
        except OperationalError as error:
            log.warning("ticket_lost", task=task, queue=queue, reason=str(error))
            self.back_off()
            return False
        return True
