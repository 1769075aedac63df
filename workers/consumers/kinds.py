"""The three kinds of consumer. One pool of threads shared by long and short tasks would starve the short.

Each registers its tasks, says which queues feed it, and looks for work itself now and then, in case Redis is deaf.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Final, Protocol

import redis
import structlog
from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from core.counters import CounterName
from core.queue.names import (
    CANCEL_CHANNEL,
    CLERK_QUEUE,
    DELIVER,
    FINALIZE,
    PREPARE,
    RUN_CHAT,
    RUN_SHARDS,
    VALIDATE,
    WATCH_CHANNEL,
    batch_queue,
    chat_queue,
)
from core.url_guard import url_guard
from db import jobs, shards
from workers.batches.finalize import finalize
from workers.batches.prepare import prepare
from workers.consumers.channel_listener import ChannelListener
from workers.consumers.dedup_executor import DedupExecutor
from workers.context import ClerkContext, WorkerContext
from workers.heartbeat import Status, worker_status
from workers.job_runner import JobRunner
from workers.maintenance.sweeper import Sweeper
from workers.maintenance.webhook_delivery import WebhookDispatcher
from workers.maintenance.webhook_sender import WebhookSender
from workers.shards.isolation import Isolation
from workers.shards.lanes import ShardLanes
from workers.validation.task import answer_validation

log = structlog.get_logger()

_CHAT_HELPERS: Final = 4
_CLERK_HELPERS: Final = 2
_OVERDUE: Final = 16


class Consumer(Protocol):
    """What a kind of consumer adds to the process."""

    queues: list[str]
    threads: int

    def start(self) -> None:
        """The broker is there: begin what runs beside the tasks."""

    def drain(self, *, abort: bool) -> None:
        """Begin nothing new; with `abort`, give back what runs."""

    def is_idle(self) -> bool:
        """Is nothing running?"""

    def status(self, now: float) -> Status:
        """What there is to report; `now` is the monotonic clock's."""

    def close(self) -> None:
        """Last words."""


class PeriodicThread(threading.Thread):
    """Calls something now and then until closed; a sick database is only logged."""

    def __init__(self, seconds: float, action: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds = seconds
        self._action = action
        self._worked_at: float | None = None
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.is_set():
            try:
                self._action()
                self._worked_at = time.monotonic()
            except SQLAlchemyError as error:
                log.warning("poll_failed", thread=self.name, reason=type(error).__name__)
            self._stop_event.wait(self._seconds)

    def seconds_since_success(self, now: float) -> float | None:
        """How long ago (by the monotonic clock) it last went well; None: never."""
        return None if self._worked_at is None else now - self._worked_at

    def close(self) -> None:
        """Not again."""
        self._stop_event.set()


class ChatConsumer:
    """Single jobs: a thread each, for as long as the job runs."""

    def __init__(self, app: Celery, context: WorkerContext, client: redis.Redis) -> None:
        settings = context.settings
        self.queues = [chat_queue(model) for model in context.models]
        self.threads = settings.chat_threads
        self._context = context
        self._runner = JobRunner(context)
        self._cancels = ChannelListener(client, settings.key_prefix + CANCEL_CHANNEL, self._runner.cancel)
        self._poll = PeriodicThread(settings.poll_seconds, self._take_overdue, "chat-poll")
        self._unbidden = DedupExecutor(_CHAT_HELPERS, "chat-overdue")

        @app.task(name=RUN_CHAT)  # type: ignore[untyped-decorator]
        def run_chat(job_id: str) -> None:
            self._runner.run(job_id)

    def start(self) -> None:
        """Heartbeats, cancel hints, and a look for jobs whose tickets never came."""
        self._context.leases.start()
        self._cancels.start()
        self._poll.start()

    def drain(self, *, abort: bool) -> None:
        """See `Consumer`."""
        self._poll.close()
        self._unbidden.close()
        self._runner.drain(abort=abort)

    def is_idle(self) -> bool:
        """See `Consumer`."""
        return self._runner.is_idle()

    def status(self, now: float) -> Status:
        """See `Consumer`."""
        return worker_status(self._context, self._poll.seconds_since_success(now), now)

    def close(self) -> None:
        """See `Consumer`."""
        self._cancels.close()
        self._context.publisher.close()

    def _take_overdue(self) -> None:
        """Even if Redis is deaf: what waits for long is taken without a ticket."""
        age = timedelta(seconds=self._context.settings.ticket_seconds)
        with self._context.database.begin() as connection:
            overdue = list(connection.execute(jobs.waiting_jobs(list(self._context.models), age, _OVERDUE)).scalars())
        for job_id in overdue:
            self._unbidden.begin(job_id, partial(self._runner.run, job_id))


class BatchConsumer:
    """Shards: a few lanes per model."""

    def __init__(self, app: Celery, context: WorkerContext, client: redis.Redis) -> None:
        self.queues = [batch_queue(model) for model in context.models]
        self.threads = (context.settings.batch_lanes + 1) * len(context.models)
        self._context = context
        isolation = Isolation()
        self._lanes = {name: ShardLanes(context, served, isolation) for name, served in context.models.items()}
        self._poll = PeriodicThread(context.settings.poll_seconds, self._look, "batch-poll")
        self._unbidden = DedupExecutor(context.settings.batch_lanes * len(context.models), "lane")
        self._watches = ChannelListener(client, context.settings.key_prefix + WATCH_CHANNEL, self._watch)

        @app.task(name=RUN_SHARDS)  # type: ignore[untyped-decorator]
        def run_shards(model: str) -> None:
            if (lanes := self._lanes.get(model)) is not None:
                lanes.work()

    def start(self) -> None:
        """Heartbeats, and a look for shards at once: a restarted worker resumes what was running."""
        self._context.leases.start()
        self._watches.start()
        self._poll.start()

    def drain(self, *, abort: bool) -> None:
        """See `Consumer`."""
        self._poll.close()
        self._unbidden.close()
        for lanes in self._lanes.values():
            lanes.drain(abort=abort)

    def is_idle(self) -> bool:
        """See `Consumer`."""
        return all(lanes.is_idle() for lanes in self._lanes.values())

    def status(self, now: float) -> Status:
        """See `Consumer`."""
        return worker_status(self._context, self._poll.seconds_since_success(now), now)

    def close(self) -> None:
        """See `Consumer`."""
        self._watches.close()
        self._context.publisher.close()

    def _watch(self, line: str) -> None:
        for lanes in self._lanes.values():
            lanes.watch(line)

    def _look(self) -> None:
        with self._context.database.begin() as connection:
            waiting = set(connection.execute(shards.models_with_claimable_shards()).scalars())
        for name in waiting & set(self._lanes):
            for number in range(self._context.settings.batch_lanes):
                self._unbidden.begin(f"{name}:{number}", self._lanes[name].work)


class ClerkConsumer:
    """Prepare, finalize, sweep, webhooks: no engine."""

    def __init__(self, app: Celery, context: ClerkContext) -> None:
        self.queues = [CLERK_QUEUE]
        self.threads = 2
        self._context = context
        self._unbidden = DedupExecutor(_CLERK_HELPERS, "clerk-unheard")
        self._sweeper = Sweeper(context, self._unbidden.begin)
        self._courier = WebhookDispatcher(
            context.settings, context.database, WebhookSender(url_guard(context.settings)), context.publisher.publish
        )
        self._running = 0
        self._lock = threading.Lock()

        @app.task(name=PREPARE)  # type: ignore[untyped-decorator]
        def run_prepare(batch_id: str) -> None:
            self._work(prepare, batch_id)

        @app.task(name=FINALIZE)  # type: ignore[untyped-decorator]
        def run_finalize(batch_id: str) -> None:
            self._work(finalize, batch_id)

        @app.task(name=DELIVER)  # type: ignore[untyped-decorator]
        def run_deliver(_: str) -> None:
            self._courier.wake()

        @app.task(name=VALIDATE)  # type: ignore[untyped-decorator]
        def run_validate(validation_id: str) -> None:
            self._work(answer_validation, validation_id)

    def start(self) -> None:
        """See `Consumer`."""
        self._sweeper.start()
        self._courier.start()

    def drain(self, *, abort: bool) -> None:  # noqa: ARG002 - its transactions roll back by themselves
        """See `Consumer`."""
        self._unbidden.close()
        self._sweeper.close()
        self._courier.close()

    def is_idle(self) -> bool:
        """See `Consumer`."""
        return self._running == 0 and self._unbidden.is_idle()

    def status(self, now: float) -> Status:
        """See `Consumer`."""
        worked_at = self._sweeper.worked_at
        return Status(
            poll_seconds=None if worked_at is None else now - worked_at,
            totals={(CounterName.EVENTS_DROPPED, ""): self._context.publisher.num_dropped},
        )

    def close(self) -> None:
        """See `Consumer`."""
        self._context.publisher.close()

    def _work(self, task: Callable[[ClerkContext, str], None], batch_id: str) -> None:
        with self._lock:
            self._running += 1
        try:
            task(self._context, batch_id)
        finally:
            with self._lock:
                self._running -= 1
