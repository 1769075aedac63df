"""Batch consumer: shards, in a few lanes per model."""

from __future__ import annotations

import redis
from celery import Celery

from core.queue.names import RUN_SHARDS, WATCH_CHANNEL, batch_queue
from db import shards
from workers.consumers.base import Consumer, PeriodicThread
from workers.consumers.channel_listener import ChannelListener
from workers.consumers.dedup_executor import DedupExecutor
from workers.context import WorkerContext
from workers.heartbeat import Status, worker_status
from workers.shards.isolation import Isolation
from workers.shards.lanes import ShardLanes


class BatchConsumer(Consumer):
    """Runs shards by ticket, and polls for others: a restarted worker resumes what was running."""

    def __init__(self, app: Celery, context: WorkerContext, client: redis.Redis) -> None:
        settings = context.settings
        self.queues = [batch_queue(model) for model in context.models]
        self.threads = (settings.batch_lanes + 1) * len(context.models)
        self._context = context
        isolation = Isolation()
        self._lanes = {name: ShardLanes(context, served, isolation) for name, served in context.models.items()}
        self._poll = PeriodicThread(settings.poll_seconds, self._find_shards, "batch-poll")
        self._executor = DedupExecutor(settings.batch_lanes * len(context.models), "batch-lane")
        self._watches = ChannelListener(client, settings.key_prefix + WATCH_CHANNEL, self._watch)

        @app.task(name=RUN_SHARDS)  # type: ignore[untyped-decorator]
        def run_shards(model: str) -> None:
            if (lanes := self._lanes.get(model)) is not None:
                lanes.work()

    def start(self) -> None:
        self._context.leases.start()
        self._watches.start()
        self._poll.start()

    def drain(self, *, abort: bool) -> None:
        self._poll.close()
        self._executor.close()
        for lanes in self._lanes.values():
            lanes.drain(abort=abort)

    def is_idle(self) -> bool:
        return all(lanes.is_idle() for lanes in self._lanes.values())

    def status(self, now: float) -> Status:
        return worker_status(self._context, self._poll.seconds_since_success(now), now)

    def close(self) -> None:
        self._watches.close()
        self._context.publisher.close()

    def _watch(self, line: str) -> None:
        for lanes in self._lanes.values():
            lanes.watch(line)

    def _find_shards(self) -> None:
        with self._context.database.begin() as connection:
            waiting = set(connection.execute(shards.models_with_claimable_shards()).scalars())
        for name in waiting & set(self._lanes):
            for number in range(self._context.settings.batch_lanes):
                self._executor.submit(f"{name}:{number}", self._lanes[name].work)
