"""Base of the consumers: the methods that the process calls, and a thread that polls."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from workers.consumers.queue_control import QueueControl
from workers.context import ServedModel
from workers.heartbeat import Status
from workers.runtime.recorder import Recorder

log = structlog.get_logger()


class Consumer(ABC):
    """One kind of consumer. It registers its tasks when it is built, and polls for work whose ticket was lost.

    `queues` are those it reads, `threads` the tasks it runs at once, `recorder` has its metrics.
    """

    queues: list[str]
    threads: int
    recorder: Recorder

    @abstractmethod
    def start(self) -> None:
        """Start the threads beside the tasks. Called once the broker is connected."""

    @abstractmethod
    def drain(self, *, abort: bool) -> None:
        """Start nothing new; with `abort`, give back what runs."""

    def hangup(self) -> None:  # noqa: B027 - most kinds have nothing to do
        """Called at a SIGHUP: look at the models folder, where this kind follows it."""

    @abstractmethod
    def is_idle(self) -> bool:
        """Is nothing running?"""

    @abstractmethod
    def status(self, now: float) -> Status:
        """The next heartbeat's report; `now` is the monotonic clock's."""

    def problem(self, now: float) -> str:  # noqa: ARG002
        """Describe what only a restart of the process ends; empty without it. `now` is the monotonic clock's."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Publish the last events and stop the threads."""


class ModelConsumer(Consumer):
    """A consumer whose models come and go while it runs; called by the thread of its link (see `ModelFollower`)."""

    def __init__(self, kind: str) -> None:
        self.control = QueueControl(f"idle.{kind}")
        self.on_work: Callable[[], None] = lambda: None  # called when work begins, by any thread
        self.queues = [self.control.idle_queue]

    @abstractmethod
    def add_model(self, served: ServedModel) -> None:
        """Take work of this model."""

    @abstractmethod
    def retire_model(self, name: str, *, abort: bool) -> None:
        """Begin no more work of this model; with `abort`, give back what may run again. May be called again."""

    @abstractmethod
    def num_running(self, name: str) -> int:
        """Count the work of this model that runs here, or that is being claimed."""

    @abstractmethod
    def num_begun(self, name: str) -> int:
        """Count the jobs or shards of this model that were begun since it was added."""

    @abstractmethod
    def remove_model(self, name: str) -> None:
        """Forget a retired model of which nothing runs."""


class PeriodicThread(threading.Thread):
    """Calls an action every `seconds` until closed; an error is logged."""

    def __init__(self, seconds: float, action: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds = seconds
        self._action = action
        self._succeeded_at: float | None = None
        self._stop_event = threading.Event()

    def run(self) -> None:
        while not self._stop_event.is_set():
            try:
                self._action()
                self._succeeded_at = time.monotonic()
            except SQLAlchemyError as error:
                log.warning("poll_failed", thread=self.name, reason=type(error).__name__)
            except Exception as error:  # the edge of this thread: the next call must come
                log.error("poll_failed", thread=self.name, exc_info=error)
            self._stop_event.wait(self._seconds)

    def seconds_since_success(self, now: float) -> float | None:
        """Seconds since the last successful call, by the monotonic clock; None before the first."""
        return None if self._succeeded_at is None else now - self._succeeded_at

    def close(self) -> None:
        """Stop after the call in progress."""
        self._stop_event.set()
