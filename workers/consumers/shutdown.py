"""Graceful shutdown of a consumer process within a deadline; Celery's own waits for its threads without limit."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import structlog
from celery.worker import state as celery_state

from core.telemetry.tracing import stop_tracing
from workers.consumers.base import Consumer

log = structlog.get_logger()

_EXIT_SECONDS: Final = 0.2
_FLUSH_SECONDS: Final = 8.0  # at most; a third of a short deadline


class GracefulShutdown:
    """Finishes short work, gives back the rest and ends the process. `on_drain` is called once nothing new is started."""

    def __init__(self, consumer: Consumer, seconds: float, on_drain: Callable[[], None] = lambda: None) -> None:
        self._consumer = consumer
        self._on_drain = on_drain
        self._seconds = seconds
        self._skip_wait = threading.Event()
        self._thread: threading.Thread | None = None

    def on_signal(self, *_: Any) -> None:  # Any: what a signal handler is given
        """The first signal starts to drain, the second one skips the waiting."""
        if self._thread is None:
            log.info("draining", seconds=self._seconds)
            self._thread = threading.Thread(target=self._run, name="shutdown", daemon=True)
            self._thread.start()
        else:
            self._skip_wait.set()

    def _run(self) -> None:
        began = time.monotonic()
        deadline = threading.Timer(self._seconds, os._exit, (0,))  # a frozen broker or database may block the rest
        deadline.daemon = True
        deadline.start()
        self._consumer.drain(abort=False)
        self._on_drain()
        celery_state.should_stop = 0
        self._wait_idle(began + self._seconds - min(_FLUSH_SECONDS, self._seconds / 3))
        if not self._consumer.is_idle():
            self._consumer.drain(abort=True)
            self._skip_wait.clear()
            self._wait_idle(began + self._seconds - 1)
        self._consumer.close()
        stop_tracing(max(0.1, began + self._seconds - time.monotonic() - _EXIT_SECONDS))
        with suppress(OSError):  # the log's disk may be full
            sys.stderr.flush()
        os._exit(0)  # Celery would wait for its threads, and for a broker that may be gone

    def _wait_idle(self, until: float) -> None:
        while not self._consumer.is_idle() and time.monotonic() < until:
            if self._skip_wait.wait(0.05):
                return
