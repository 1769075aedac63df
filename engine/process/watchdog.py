"""The watchdog: a turn of the engine's loop that does not return must not be waited for.

It counts its own looks instead of asking a clock: a process that stood still as a whole, on a machine that was paused,
has not hung.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from engine.process.exit_codes import Exit, abort_process

_LONGEST_PAUSE_SECONDS: Final = 1.0


class Watchdog(threading.Thread):
    """`turn` is the number of the turn the loop is in, None between two of them."""

    def __init__(self, turn: Callable[[], int | None], hang_seconds: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._turn = turn
        self._hang_seconds = hang_seconds
        self._seen: int | None = None
        self._waited_seconds = 0.0

    def run(self) -> None:
        """Until the process ends."""
        pause = min(_LONGEST_PAUSE_SECONDS, self._hang_seconds / 4)
        while True:
            time.sleep(pause)
            if self.is_hung(pause):
                abort_process(Exit.HUNG, "a step hung")

    def is_hung(self, pause: float) -> bool:
        """Another look, `pause` after the one before: has the loop been in the same turn for too many of them?"""
        turn = self._turn()
        is_same = turn is not None and turn == self._seen
        self._waited_seconds = self._waited_seconds + pause if is_same else 0.0
        self._seen = turn
        return self._waited_seconds >= self._hang_seconds
