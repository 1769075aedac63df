"""The crash log: deaths of this worker's engines, written to the database, and how many of them nobody can explain.

The launcher's own thread must not wait for a database, so this has one of its own; without a database deaths are only logged.
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
    """Of one worker: `worker` is its host and device. `learned(model, crashes)` is called for each death, in our thread."""

    def __init__(self, database: Engine, worker: str, learned: Callable[[str, int], None]) -> None:
        self._database = database
        self._worker = worker
        self._learned = learned
        self._deaths: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="crash-log", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def died(self, model: str, exit_code: int) -> None:
        """An engine died; any thread may say so."""
        self._deaths.put((model, exit_code))

    def write(self, model: str, exit_code: int) -> None:
        """Write one death, and learn what is unexplained by now. Public so that tests need no thread."""
        with self._database.begin() as connection:
            connection.execute(quarantine.add_engine_crash(model, self._worker, exit_code))
        with self._database.begin() as connection:
            count = connection.execute(quarantine.unexplained_crashes(model, self._worker, CRASH_WINDOW)).scalar_one()
        self._learned(model, count)

    def _run(self) -> None:
        while True:
            model, exit_code = self._deaths.get()
            try:
                self.write(model, exit_code)
            except SQLAlchemyError as error:
                log.warning("crash_not_written", model=model, exit_code=exit_code, reason=type(error).__name__)
