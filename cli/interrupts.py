"""Ctrl-C and SIGTERM as exceptions that are not lost: Python drops one that is raised while a callback of fork runs."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Final

from cli.errors import Terminated

_received: Final[list[KeyboardInterrupt]] = []


def raise_on_signals() -> None:
    """Let both signals raise in the main thread; a signal that the parent process ignores stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)
    sys.unraisablehook = _report_unraisable


def check_interrupt() -> bool:
    """Raise the interrupt that arrived, if any; else return False. Call it in loops that start processes."""
    if _received:
        raise _received[0]
    return False


def _raise(number: int, _: FrameType | None) -> None:
    interrupt = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
    _received.append(interrupt)
    raise interrupt


def _report_unraisable(dropped: sys.UnraisableHookArgs) -> None:
    """Print an exception that Python drops, unless it is an interrupt, which `check_interrupt` raises again."""
    if not any(dropped.exc_value is interrupt for interrupt in _received):
        sys.__unraisablehook__(dropped)
