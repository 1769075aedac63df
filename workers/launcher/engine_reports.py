"""Engine reports: the state of each engine, how often it has ended, and the reason why it does not serve.

Where a model could not be loaded, the reason is the engine's own message. Nothing else of its log is copied, since the last
line may hold anything, even text of a request.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from core.counters import CounterName
from core.states import EngineState
from db.workers import EngineReport
from engine.process.exit_codes import NOT_LOADED, Exit
from workers.heartbeat import Status
from workers.runtime.counters import Counters

log = structlog.get_logger()

_REASONS: Final = {
    Exit.HUNG: "a decode step hung",
    Exit.MEMORY: "memory ran out",
    Exit.INPUT_FAILED: "the thread that takes requests ended",
}
_MAX_CHARACTERS: Final = 300
_TAIL_BYTES: Final = 4096
_FOLDERS: Final = re.compile(r"(?:/[^\s/]+)+/")


@dataclass(slots=True)
class _Engine:
    state: EngineState = EngineState.LOADING
    num_exits: int = 0
    num_failed_starts: int = 0
    exit_reason: str | None = None
    warning: str | None = None


class EngineReports:
    """The engines of one launcher, by model. `on_change` is called after each change of a state.

    An engine that ends while it serves is LOADING until it serves again. One that ends with an error while it loads does not
    start (FAILED, or MISSING without its file), nor does one that is killed more than `tolerated_exits` times in a row.
    """

    def __init__(self, models: list[str], *, tolerated_exits: int = 1) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._engines = {model: _Engine() for model in models}
        self._tolerated_exits = tolerated_exits
        self._is_serving = False
        self._counters = Counters()

    def add_exit(self, model: str, exit_code: int, log: Path) -> None:
        """Record an engine that ended without being stopped."""
        engine = self._engines[model]
        engine.num_exits += 1
        engine.exit_reason = exit_reason(exit_code, _last_line(log))
        self._counters.add(CounterName.ENGINE_DEATHS, model)
        if engine.state is EngineState.READY:
            self._set(engine, EngineState.LOADING)
            return
        engine.num_failed_starts += 1
        if exit_code >= 0 or engine.num_failed_starts > self._tolerated_exits:
            self._set(engine, EngineState.MISSING if exit_code == Exit.NO_FILE else EngineState.FAILED)

    def give_up(self, model: str) -> None:
        """Record an engine that is not started again; it keeps its reason."""
        engine = self._engines[model]
        if engine.state is EngineState.LOADING:
            engine.exit_reason = engine.exit_reason or "it was not ready in time"
            self._set(engine, EngineState.FAILED)

    def set_ready(self, model: str, warning: str | None) -> None:
        """Record that an engine has replied."""
        engine = self._engines[model]
        if warning is not None and warning != engine.warning:
            log.warning("model_warning", model=model, warning=warning)
        engine.num_failed_starts, engine.exit_reason, engine.warning = 0, None, warning
        self._set(engine, EngineState.READY)

    def start_serving(self) -> None:
        """Record that the consumers of all engines run; before, an engine that has replied is reported as loading."""
        self._is_serving = True

    def status(self) -> Status:
        """The report of the launcher's heartbeat."""
        return Status(
            engines=[self._report(model, engine) for model, engine in self._engines.items()],
            totals=self._counters.totals(),
        )

    def _report(self, model: str, engine: _Engine) -> EngineReport:
        is_waiting = engine.state is EngineState.READY and not self._is_serving
        return EngineReport(
            model=model,
            num_deaths=engine.num_exits,
            exit_reason=engine.exit_reason,
            state=EngineState.LOADING if is_waiting else engine.state,
            warning=engine.warning,
        )

    def _set(self, engine: _Engine, state: EngineState) -> None:
        if engine.state is not state:
            engine.state = state
            self.on_change()


def exit_reason(exit_code: int, last_line: str) -> str:
    """A sentence on how an engine ended. Folders are cut from the paths in its own message."""
    if exit_code in NOT_LOADED:
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
