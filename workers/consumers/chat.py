"""Chat consumer: single jobs, each in a thread for as long as it runs."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Final

import redis
from celery import Celery

from core.queue.names import CANCEL_CHANNEL, RUN_CHAT, chat_queue
from db import jobs
from workers.consumers.base import Consumer, PeriodicThread
from workers.consumers.channel_listener import ChannelListener
from workers.consumers.dedup_executor import DedupExecutor
from workers.context import WorkerContext
from workers.heartbeat import Status, worker_status
from workers.job_runner import JobRunner

_OVERDUE_THREADS: Final = 4
_OVERDUE_JOBS: Final = 16  # taken in one poll


class ChatConsumer(Consumer):
    """Runs jobs by ticket, and overdue jobs without one."""

    def __init__(self, app: Celery, context: WorkerContext, client: redis.Redis) -> None:
        settings = context.settings
        self.queues = [chat_queue(model) for model in context.models]
        self.threads = settings.chat_threads
        self._context = context
        self._runner = JobRunner(context)
        self._cancels = ChannelListener(client, settings.key_prefix + CANCEL_CHANNEL, self._runner.cancel)
        self._poll = PeriodicThread(settings.poll_seconds, self._take_overdue, "chat-poll")
        self._executor = DedupExecutor(_OVERDUE_THREADS, "chat-overdue")

        @app.task(name=RUN_CHAT)  # type: ignore[untyped-decorator]
        def run_chat(job_id: str) -> None:
            self._runner.run(job_id)

    def start(self) -> None:
        self._context.leases.start()
        self._cancels.start()
        self._poll.start()

    def drain(self, *, abort: bool) -> None:
        self._poll.close()
        self._executor.close()
        self._runner.drain(abort=abort)

    def is_idle(self) -> bool:
        return self._runner.is_idle()

    def status(self, now: float) -> Status:
        return worker_status(self._context, self._poll.seconds_since_success(now), now)

    def close(self) -> None:
        self._cancels.close()
        self._context.publisher.close()

    def _take_overdue(self) -> None:
        """Run jobs that have waited longer than `ticket_seconds`: their tickets were lost, or the broker does not answer."""
        age = timedelta(seconds=self._context.settings.ticket_seconds)
        with self._context.database.begin() as connection:
            statement = jobs.waiting_jobs(list(self._context.models), age, _OVERDUE_JOBS)
            overdue = list(connection.execute(statement).scalars())
        for job_id in overdue:
            self._executor.submit(job_id, partial(self._runner.run, job_id))
