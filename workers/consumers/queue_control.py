"""Queue control: which queues the Celery consumer of this process reads, changed while it runs.

Celery's consumer belongs to the thread of its event loop, so a change is made there: `Hub.call_soon` is safe in any thread and
ends the loop's sleep. A callback may be lost with a connection, and a new consumer begins with the queues that were selected
last; so the wanted queues are compared with the present ones again and again. Until a read of the broker that is in progress
has ended, up to a second, it does not include a new queue: the tickets in it wait that long.
"""

from __future__ import annotations

import threading
from typing import Any

import structlog

log = structlog.get_logger()


class QueueControl:
    """The queues of one process. `idle_queue`, which gets no message, is read too: Celery needs at least one."""

    def __init__(self, idle_queue: str) -> None:
        self.idle_queue = idle_queue
        self._wanted = frozenset({idle_queue})
        self._consumer: Any = None  # Any: Celery's consumer has no types
        self._lock = threading.Lock()

    def attach(self, consumer: Any) -> None:  # Any: as above
        """Control this consumer, once it is connected."""
        self._consumer = consumer
        self.reconcile()

    def add(self, queue: str) -> None:
        """Read a queue."""
        with self._lock:
            self._wanted |= {queue}
        self.reconcile()

    def remove(self, queue: str) -> None:
        """Read a queue no more."""
        with self._lock:
            self._wanted -= {queue}
        self.reconcile()

    def reconcile(self) -> None:
        """Bring the consumer to the wanted queues, soon. Thread-safe, and cheap where nothing differs."""
        if self._consumer is not None:
            self._consumer.call_soon(self._reconcile)

    def _reconcile(self) -> None:
        """Called in the thread of the event loop. An error of the connection ends the loop, which connects again."""
        present = self._consumer.task_consumer
        if present is None:  # between two connections
            return
        wanted, active = self._wanted, {queue.name for queue in present.queues}
        for queue in sorted(wanted - active):
            self._consumer.add_task_queue(queue)
        for queue in sorted(active - wanted):
            self._consumer.cancel_task_queue(queue)
