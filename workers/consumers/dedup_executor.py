"""Work that is done without a ticket: the broker is away, or this process does not hear it.

It has a few threads of its own, beside those that tickets keep busy. Each piece is here once at a time, however often it is
found waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog
from sqlalchemy.exc import SQLAlchemyError

log = structlog.get_logger()


class DedupExecutor:
    """Work of one process, by name."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._lock = threading.Lock()
        self._here: set[str] = set()
        self._is_closed = False

    def begin(self, name: str, work: Callable[[], None]) -> None:
        """When a thread is free, unless it waits or runs here already."""
        with self._lock:
            if self._is_closed or name in self._here:
                return
            self._here.add(name)
            self._threads.submit(self._do, name, work)

    def is_idle(self) -> bool:
        """Does nothing run, or wait to?"""
        return not self._here

    def close(self) -> None:
        """Begin nothing new."""
        with self._lock:
            self._is_closed = True

    def _do(self, name: str, work: Callable[[], None]) -> None:
        try:
            if not self._is_closed:
                work()
        except SQLAlchemyError as error:
            log.warning("work_failed", id=name, reason=type(error).__name__)
        except Exception as error:  # the edge of this thread: whoever found it waiting finds it again
            log.error("work_failed", id=name, exc_info=error)
        finally:
            with self._lock:
                self._here.discard(name)
