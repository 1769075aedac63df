"""Crash reports: count the exits of engines, and keep the reason of the last one of each.

Where a model could not be loaded, the reason is the engine's own message. Nothing else of its log is copied, since the last
line may hold anything, even text of a request.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Final

from core.counters import CounterName
from db.workers import EngineReport
from engine.process.exit_codes import Exit
from workers.heartbeat import Status
from workers.runtime.counters import Counters

_REASONS: Final = {
    Exit.HUNG: "a decode step hung",
    Exit.MEMORY: "memory ran out",
    Exit.INPUT_FAILED: "the thread that takes requests ended",
}
_MAX_CHARACTERS: Final = 300
_TAIL_BYTES: Final = 4096
_FOLDERS: Final = re.compile(r"(?:/[^\s/]+)+/")


class CrashReports:
    """Counts and reasons of the exits of one launcher's engines, by model."""

    def __init__(self, models: list[str]) -> None:
        self._deaths = dict.fromkeys(models, 0)
        self._reasons: dict[str, str] = {}
        self._counters = Counters()

    def add(self, model: str, exit_code: int, log: Path) -> None:
        """Record an engine that ended without being stopped."""
        self._deaths[model] += 1
        self._reasons[model] = exit_reason(exit_code, _last_line(log))
        self._counters.add(CounterName.ENGINE_DEATHS, model)

    def status(self) -> Status:
        """The report of the launcher's heartbeat."""
        engines = [
            EngineReport(model=model, num_deaths=deaths, exit_reason=self._reasons.get(model))
            for model, deaths in self._deaths.items()
        ]
        return Status(engines=engines, totals=self._counters.totals())


def exit_reason(exit_code: int, last_line: str) -> str:
    """A sentence on how an engine ended. Folders are cut from the paths in its own message."""
    if exit_code == Exit.MODEL:
        return _FOLDERS.sub("", last_line)[:_MAX_CHARACTERS]
    if exit_code in _REASONS:
        return f"{_REASONS[Exit(exit_code)]}, and the engine aborted"
    if exit_code < 0:
        return f"it was ended by {signal.Signals(-exit_code).name}"
    return f"it ended with exit code {exit_code}"


def _last_line(log: Path) -> str:
    """The last line of a log; empty if there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
