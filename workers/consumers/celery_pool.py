"""Celery's pool of threads, which tells the consumer at once when a thread is free again.

Without prefetch a consumer asks the broker for a message only while a thread is free, and looks whether one is whenever its
event loop turns. Nothing turns it when a task ends: with every thread taken it would sleep until a timer of its own, up to a
second, and tasks of milliseconds would run two a second. Knows futures and the loop; nothing of tasks.
"""

from __future__ import annotations

from typing import Any

from celery.concurrency import thread


class Pool(thread.TaskPool):  # type: ignore[misc]  # Celery has no types
    """See above; `worker_pool` of an application names it."""

    _loop: Any = None  # Any: kombu's Hub, once it runs

    def register_with_event_loop(self, loop: Any) -> None:  # Any: kombu's Hub
        """The loop that shall look."""
        self._loop = loop

    def on_apply(self, *args: Any, **options: Any) -> Any:  # Any: as Celery has it
        """Run a task in a thread."""
        result = super().on_apply(*args, **options)
        result.f.add_done_callback(self._turn)
        return result

    def _turn(self, _: object) -> None:
        """In the task's thread, when Celery has forgotten the task: only then does the thread count as free."""
        if self._loop is not None:
            self._loop.call_soon(_nothing)  # any thread may, and it interrupts the loop's sleep


def _nothing() -> None:
    """The turn is enough."""
