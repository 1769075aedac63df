"""Executor for work that a poll or sweep has found without a ticket: the broker is away, or does not deliver here.

It has threads of its own, since those of Celery may all be busy. The same work may be found many times before it has run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog
from sqlalchemy.exc import SQLAlchemyError

from core.files.file_store import FileStoreUnavailable

log = structlog.get_logger()


class DedupExecutor:
    """Runs work of one key once at a time."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._lock = threading.Lock()
        self._pending: set[str] = set()
        self._is_closed = False

    def submit(self, key: str, work: Callable[[], None]) -> None:
        """Run it when a thread is free, unless work of this key is waiting or running."""
        with self._lock:
            if self._is_closed or key in self._pending:
                return
            self._pending.add(key)
            self._threads.submit(self._run, key, work)

    def is_idle(self) -> bool:
        """Is nothing waiting or running?"""
        return not self._pending

    def close(self) -> None:
        """Start nothing new."""
        with self._lock:
            self._is_closed = True

    def _run(self, key: str, work: Callable[[], None]) -> None:
        try:
            if not self._is_closed:
                work()
        except SQLAlchemyError as error:
            log.warning("work_failed", id=key, reason=type(error).__name__)
        except FileStoreUnavailable as error:
            log.warning("work_failed", id=key, reason=error.problem)
        except Exception as error:  # the edge of this thread: the next poll or sweep finds the work again
            log.error("work_failed", id=key, exc_info=error)
        finally:
            with self._lock:
                self._pending.discard(key)
