"""Chat consumer: single jobs, each in a thread for as long as it runs."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Final

import redis
from celery import Celery

from core.queue.names import CANCEL_CHANNEL, RUN_CHAT, chat_queue
from db import jobs
from workers.consumers.base import ModelConsumer, PeriodicThread
from workers.consumers.dedup_executor import DedupExecutor
from workers.context import ServedModel, WorkerContext
from workers.heartbeat import Status, worker_status
from workers.job_runner import JobRunner
from workers.runtime.channel_listener import ChannelListener

_OVERDUE_THREADS: Final = 4
_OVERDUE_JOBS: Final = 16  # taken in one poll


class ChatConsumer(ModelConsumer):
    """Runs jobs by ticket, and overdue jobs without one."""

    def __init__(self, app: Celery, context: WorkerContext, client: redis.Redis) -> None:
        super().__init__("chat")
        settings = context.settings
        self.threads = settings.chat_threads
        self._context = context
        self.recorder = context.metrics.recorder
        self._runner = JobRunner(context, lambda: self.on_work())
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

    def add_model(self, served: ServedModel) -> None:
        """Read its queue, and take jobs that have waited for it at once: a read in progress does not include the queue yet."""
        name = served.model.name
        self._context.models[name] = served
        self._runner.reinstate(name)
        self.control.add(chat_queue(name))
        self._executor.submit(f"waiting {name}", partial(self._take, [name], timedelta()))

    def retire_model(self, name: str, *, abort: bool) -> None:
        self.control.remove(chat_queue(name))
        self._runner.retire(name, abort=abort)

    def num_running(self, name: str) -> int:
        return self._runner.num_running(name)

    def num_begun(self, name: str) -> int:
        return self._runner.num_begun(name)

    def remove_model(self, name: str) -> None:
        del self._context.models[name]

    def _take_overdue(self) -> None:
        """Run jobs that have waited longer than `ticket_seconds`: their tickets were lost, or the broker does not answer."""
        self._take(list(self._context.models), timedelta(seconds=self._context.settings.ticket_seconds))

    def _take(self, models: list[str], age: timedelta) -> None:
        with self._context.database.begin() as connection:
            overdue = list(connection.execute(jobs.waiting_jobs(models, age, _OVERDUE_JOBS)).scalars())
        for job_id in overdue:
            self._executor.submit(job_id, partial(self._runner.run, job_id))
