"""Crash log: writes crashes of this worker's engines to the database, and counts those without a known cause.

The launcher's own thread must not wait for a database, so this has one of its own; without a database crashes are only logged.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from db import quarantine
from db.quarantine import CRASH_WINDOW

log = structlog.get_logger()


class CrashLog:
    """The crashes of one worker, named by host and device.

    `on_crash_count(model, crashes)` is called after each crash, in the thread of this log.
    """

    def __init__(self, database: Engine, worker: str, on_crash_count: Callable[[str, int], None]) -> None:
        self._database = database
        self._worker = worker
        self._on_crash_count = on_crash_count
        self._crashes: queue.SimpleQueue[tuple[str, int, str]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="crash-log", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, model: str, exit_code: int, reason: str) -> None:
        """Queue the crash of an engine; callable from any thread."""
        self._crashes.put((model, exit_code, reason))

    def write(self, model: str, exit_code: int, reason: str) -> None:
        """Write one crash, then count the unexplained ones. Public so that tests need no thread."""
        with self._database.begin() as connection:
            connection.execute(quarantine.add_engine_crash(model, self._worker, exit_code, reason))
        with self._database.begin() as connection:
            count = connection.execute(quarantine.unexplained_crashes(model, self._worker, CRASH_WINDOW)).scalar_one()
        self._on_crash_count(model, count)

    def _run(self) -> None:
        while True:
            model, exit_code, reason = self._crashes.get()
            try:
                self.write(model, exit_code, reason)
            except SQLAlchemyError as error:
                log.warning("crash_not_written", model=model, exit_code=exit_code, reason=type(error).__name__)
