"""Watchdog: abort the process when the engine's loop does one thing for longer than its limit.

It adds up its own pauses instead of reading a clock, so that a process that was suspended as a whole does not count as hung.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from engine.process.exit_codes import Exit, abort_process
from engine.progress import Activity

_LONGEST_PAUSE_SECONDS: Final = 1.0


class Watchdog(threading.Thread):
    """Checks the loop. `activity` returns what the loop does, with its limit; None while it waits for work."""

    def __init__(self, activity: Callable[[], Activity | None], hang_seconds: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._activity = activity
        self._pause = min(_LONGEST_PAUSE_SECONDS, hang_seconds / 4)
        self._seen: Activity | None = None
        self._waited_seconds = 0.0

    def run(self) -> None:
        """Check until the process ends."""
        while True:
            time.sleep(self._pause)
            if self.is_hung(self._pause):
                abort_process(Exit.HUNG, "a step hung")

    def is_hung(self, pause: float) -> bool:
        """Check again, `pause` seconds after the last check: has the loop done one thing for longer than its limit?"""
        activity = self._activity()
        is_same = activity is not None and activity is self._seen
        self._waited_seconds = self._waited_seconds + pause if is_same else 0.0
        self._seen = activity
        return activity is not None and self._waited_seconds >= activity.limit_seconds
