"""SIGHUP: a request to read files again, unless it means that the terminal of the process has closed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

_STDIN: Final = 0


def on_hangup(action: Callable[[], None]) -> None:
    """Call `action` in the main thread at each SIGHUP. A process that ran in a terminal still ends when that has closed."""
    had_terminal = os.isatty(_STDIN)

    def handle(number: int, _: FrameType | None) -> None:
        if had_terminal and not os.isatty(_STDIN):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        action()

    signal.signal(signal.SIGHUP, handle)
