"""Clerk consumer: prepares and finalizes batches, validates files, sweeps and sends webhooks. It has no engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog
from celery import Celery

from core.counters import CounterName
from core.files.file_store import FileStoreUnavailable
from core.queue.names import CLERK_QUEUE, DELIVER, FINALIZE, PREPARE, VALIDATE
from core.url_guard import url_guard
from workers.batches.finalize import finalize
from workers.batches.prepare import prepare
from workers.consumers.base import Consumer
from workers.consumers.dedup_executor import DedupExecutor
from workers.context import ClerkContext
from workers.heartbeat import Status
from workers.maintenance.sweeper import Sweeper
from workers.maintenance.webhook_delivery import WebhookDispatcher
from workers.maintenance.webhook_sender import WebhookSender
from workers.validation.task import answer_validation

log = structlog.get_logger()

_SWEEP_THREADS: Final = 2
_LONG_SWEEP_SECONDS: Final = 1800.0  # more than many files to delete take


class ClerkConsumer(Consumer):
    """Works by ticket; the sweeper finds what is due without one."""

    def __init__(self, app: Celery, context: ClerkContext) -> None:
        self.queues = [CLERK_QUEUE]
        self.threads = 2
        self._context = context
        self.recorder = context.recorder
        self._executor = DedupExecutor(_SWEEP_THREADS, "clerk-sweep")
        self._sweeper = Sweeper(context, self._executor.submit)
        self._webhooks = WebhookDispatcher(
            context.settings,
            context.database,
            WebhookSender(url_guard(context.settings)),
            context.publisher.publish,
            context.recorder,
        )
        self._num_running = 0
        self._lock = threading.Lock()

        @app.task(name=PREPARE)  # type: ignore[untyped-decorator]
        def run_prepare(batch_id: str) -> None:
            self._run(prepare, batch_id)

        @app.task(name=FINALIZE)  # type: ignore[untyped-decorator]
        def run_finalize(batch_id: str) -> None:
            self._run(finalize, batch_id)

        @app.task(name=DELIVER)  # type: ignore[untyped-decorator]
        def run_deliver(_: str) -> None:
            self._webhooks.wake()

        @app.task(name=VALIDATE)  # type: ignore[untyped-decorator]
        def run_validate(validation_id: str) -> None:
            self._run(answer_validation, validation_id)

    def start(self) -> None:
        self._context.live_catalog.start()
        self._sweeper.start()
        self._webhooks.start()

    def drain(self, *, abort: bool) -> None:  # noqa: ARG002 - transactions roll back when the process ends
        self._executor.close()
        self._sweeper.close()
        self._webhooks.close()
        self._context.live_catalog.close()

    def hangup(self) -> None:
        self._context.live_catalog.refresh_soon()

    def is_idle(self) -> bool:
        return self._num_running == 0 and self._executor.is_idle()

    def status(self, now: float) -> Status:
        swept_at = self._sweeper.swept_at
        return Status(
            poll_seconds=None if swept_at is None else now - swept_at,
            totals={
                (CounterName.EVENTS_DROPPED, ""): self._context.publisher.num_dropped,
                **self._context.counters.totals(),
            },
        )

    def problem(self, now: float) -> str:
        began_at = self._sweeper.began_at
        seconds = 0.0 if began_at is None else now - began_at
        return f"a sweep has taken {seconds / 60:.0f} minutes" if seconds > _LONG_SWEEP_SECONDS else ""

    def close(self) -> None:
        self._context.publisher.close()

    def _run(self, task: Callable[[ClerkContext, str], None], subject_id: str) -> None:
        with self._lock:
            self._num_running += 1
        try:
            task(self._context, subject_id)
        except FileStoreUnavailable as error:  # a sweep finds the work again
            log.warning("work_failed", id=subject_id, reason=error.problem)
        finally:
            with self._lock:
                self._num_running -= 1
