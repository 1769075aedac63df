"""Celery's pool of threads, which wakes the consumer as soon as a thread is free again.

Without prefetch a consumer takes a message from the broker only while a thread is free, and checks that when its event loop
turns. Celery does not turn the loop when a task ends: with every thread busy it would sleep until one of its own timers, up to a
second, so tasks of milliseconds would run at two a second.
"""

from __future__ import annotations

from typing import Any

from celery.concurrency import thread


class Pool(thread.TaskPool):  # type: ignore[misc]  # Celery has no types
    """The pool that `worker_pool` of an application names."""

    _loop: Any = None  # Any: kombu's Hub, once it runs

    def register_with_event_loop(self, loop: Any) -> None:  # Any: kombu's Hub
        """Keep the loop to wake."""
        self._loop = loop

    def on_apply(self, *args: Any, **options: Any) -> Any:  # Any: as Celery has it
        """Run a task in a thread."""
        result = super().on_apply(*args, **options)
        result.f.add_done_callback(self._wake)
        return result

    def _wake(self, _: object) -> None:
        """Called in the task's thread after Celery has dropped the task: only then does the thread count as free."""
        if self._loop is not None:
            self._loop.call_soon(_nothing)  # safe in any thread, and interrupts the loop's sleep


def _nothing() -> None:
    """The turn of the loop is enough."""
