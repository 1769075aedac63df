"""What is told of an engine's death: how it ended, and its own reason where the model could not be loaded.

Nothing else of its log is repeated: it may end in anything, even in words of a request.
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
    Exit.INTAKE_DIED: "the thread that takes requests ended",
}
_MOST_CHARACTERS: Final = 300
_TAIL_BYTES: Final = 4096
_FOLDERS: Final = re.compile(r"(?:/[^\s/]+)+/")


class CrashReports:
    """Deaths of the engines of one launcher, by model."""

    def __init__(self, models: list[str]) -> None:
        self._deaths = dict.fromkeys(models, 0)
        self._words: dict[str, str] = {}
        self._tally = Counters()

    def add(self, model: str, exit_code: int, log: Path) -> None:
        """An engine has ended, though nobody asked it to."""
        self._deaths[model] += 1
        self._words[model] = exit_reason(exit_code, _last_line(log))
        self._tally.add(CounterName.ENGINE_DEATHS, model)

    def status(self) -> Status:
        """As `workers.heartbeat` reports it."""
        engines = [
            EngineReport(model=model, num_deaths=deaths, exit_reason=self._words.get(model))
            for model, deaths in self._deaths.items()
        ]
        return Status(engines=engines, totals=self._tally.totals())


def exit_reason(exit_code: int, last_line: str) -> str:
    """How an engine ended. Of paths in its reason only the names of files are kept."""
    if exit_code == Exit.MODEL:
        return _FOLDERS.sub("", last_line)[:_MOST_CHARACTERS]
    if exit_code in _REASONS:
        return f"{_REASONS[Exit(exit_code)]}, and the engine gave up"
    if exit_code < 0:
        return f"it was ended by {signal.Signals(-exit_code).name}"
    return f"it ended with exit code {exit_code}"


def _last_line(log: Path) -> str:
    """Empty when there is none to be read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
