"""Watchdog: abort the process when an iteration of the engine's loop does not return.

It adds up its own pauses instead of reading a clock, so that a process that was suspended as a whole does not count as hung.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from engine.process.exit_codes import Exit, abort_process

_LONGEST_PAUSE_SECONDS: Final = 1.0


class Watchdog(threading.Thread):
    """Checks the loop. `iteration` returns the number of the loop's current iteration, None between two of them."""

    def __init__(self, iteration: Callable[[], int | None], hang_seconds: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._iteration = iteration
        self._hang_seconds = hang_seconds
        self._seen: int | None = None
        self._waited_seconds = 0.0

    def run(self) -> None:
        """Check until the process ends."""
        pause = min(_LONGEST_PAUSE_SECONDS, self._hang_seconds / 4)
        while True:
            time.sleep(pause)
            if self.is_hung(pause):
                abort_process(Exit.HUNG, "a step hung")

    def is_hung(self, pause: float) -> bool:
        """Check again, `pause` seconds after the last check: has the loop been in one iteration for too long?"""
        iteration = self._iteration()
        is_same = iteration is not None and iteration == self._seen
        self._waited_seconds = self._waited_seconds + pause if is_same else 0.0
        self._seen = iteration
        return self._waited_seconds >= self._hang_seconds
