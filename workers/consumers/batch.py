"""Batch consumer: shards, in a few lanes per model."""

from __future__ import annotations

from typing import Final

import redis
from celery import Celery

from core.queue.names import RUN_SHARDS, WATCH_CHANNEL, batch_queue
from db import shards
from workers.consumers.base import ModelConsumer, PeriodicThread
from workers.consumers.dedup_executor import DedupExecutor
from workers.context import ServedModel, WorkerContext
from workers.heartbeat import Status, worker_status
from workers.runtime.channel_listener import ChannelListener
from workers.shards.isolation import Isolation
from workers.shards.lanes import ShardLanes

_TICKET_THREADS: Final = 2
_LANE_THREADS: Final = 512  # more than the lanes of all models that are ever in memory; started when they are needed


class BatchConsumer(ModelConsumer):
    """Runs shards by ticket, and polls for others: a restarted worker resumes what was running."""

    def __init__(self, app: Celery, context: WorkerContext, client: redis.Redis) -> None:
        super().__init__("batch")
        settings = context.settings
        self.threads = _TICKET_THREADS
        self._context = context
        self.recorder = context.metrics.recorder
        self._isolation = Isolation()
        self._lanes: dict[str, ShardLanes] = {}
        self._poll = PeriodicThread(settings.poll_seconds, self._find_shards, "batch-poll")
        self._executor = DedupExecutor(_LANE_THREADS, "batch-lane")
        self._watches = ChannelListener(client, settings.key_prefix + WATCH_CHANNEL, self._watch)

        @app.task(name=RUN_SHARDS)  # type: ignore[untyped-decorator]
        def run_shards(model: str) -> None:
            self._wake(model)

    def start(self) -> None:
        self._context.leases.start()
        self._watches.start()
        self._poll.start()

    def drain(self, *, abort: bool) -> None:
        self._poll.close()
        self._executor.close()
        for lanes in list(self._lanes.values()):
            lanes.drain(abort=abort)

    def is_idle(self) -> bool:
        return all(lanes.is_idle() for lanes in list(self._lanes.values()))

    def status(self, now: float) -> Status:
        return worker_status(self._context, self._poll.seconds_since_success(now), now)

    def close(self) -> None:
        self._watches.close()
        self._context.publisher.close()

    def add_model(self, served: ServedModel) -> None:
        name = served.model.name
        self._context.models[name] = served
        self._lanes[name] = ShardLanes(self._context, served, self._isolation, lambda: self.on_work())
        self.control.add(batch_queue(name))
        self._wake(name)

    def retire_model(self, name: str, *, abort: bool) -> None:
        self.control.remove(batch_queue(name))
        self._lanes[name].drain(abort=abort)

    def num_running(self, name: str) -> int:
        return self._lanes[name].num_running()

    def num_begun(self, name: str) -> int:
        return self._lanes[name].num_claimed

    def remove_model(self, name: str) -> None:
        del self._lanes[name], self._context.models[name]

    def _wake(self, model: str) -> None:
        """Let the free lanes of a model look for shards, in threads of their own."""
        if (lanes := self._lanes.get(model)) is not None:
            for number in range(self._context.settings.batch_lanes):
                self._executor.submit(f"{model}:{number}", lanes.work)

    def _watch(self, line: str) -> None:
        for lanes in list(self._lanes.values()):
            lanes.watch(line)

    def _find_shards(self) -> None:
        with self._context.database.begin() as connection:
            waiting = list(connection.execute(shards.models_with_claimable_shards()).scalars())
        for name in waiting:
            self._wake(name)
