"""Engine reports: the state of each model of a launcher, how often its engine has ended, and why it does not serve.

Where a model could not be loaded, the reason is the engine's own message. Nothing else of its log is copied, since the last
line may hold anything, even text of a request.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import structlog

from core.counters import CounterName
from core.states import EngineState
from db.workers import EngineActivity, EngineReport
from engine.process.exit_codes import NOT_LOADED, Exit
from engine.process.protocol import EngineInfo
from workers.heartbeat import Status
from workers.runtime.counters import Counters

log = structlog.get_logger()

_REASONS: Final = {
    Exit.HUNG: "a decode step hung",
    Exit.MEMORY: "memory ran out",
    Exit.INPUT_FAILED: "the thread that takes requests ended",
    Exit.SERVER_ENDED: "the server that it had started ended",
}
_MAX_CHARACTERS: Final = 300
_TAIL_BYTES: Final = 4096
_FOLDERS: Final = re.compile(r"(?:/[^\s/]+)+/")
_STOPPED: Final = (EngineState.FAILED, EngineState.MISSING)


@dataclass(slots=True)
class _Engine:
    state: EngineState = EngineState.UNLOADED
    num_exits: int = 0
    num_failed_starts: int = 0
    exit_reason: str | None = None
    memory_bytes: int | None = None
    info: EngineInfo | None = None
    settings_json: str | None = None
    activity: EngineActivity | None = None
    remark: str | None = None


class EngineReports:
    """The models of one launcher. `on_change` is called after each change of a state.

    An engine that ends while it serves is LOADING until it serves again. One that ends with an error while it loads does not
    start (FAILED, or MISSING without its file), nor does one that is killed more than `tolerated_exits` times in a row.
    """

    def __init__(self, device: str = "cpu", *, tolerated_exits: int = 1) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.counters = Counters()
        self.polled_seconds: Callable[[], float | None] = lambda: None
        self._device = device
        self._engines: dict[str, _Engine] = {}
        self._held: frozenset[str] = frozenset()
        self._tolerated_exits = tolerated_exits

    def add(self, model: str) -> None:
        """Report a model that is not in memory; one that is reported already stays as it is."""
        if model not in self._engines:
            self._engines = {**self._engines, model: _Engine()}  # the heartbeat's thread reads the old one meanwhile
            self.on_change()

    def remove(self, model: str) -> None:
        """Report a model no more."""
        self._engines = {name: engine for name, engine in self._engines.items() if name != model}
        self.on_change()

    def models(self) -> set[str]:
        """The names of all models that are reported."""
        return set(self._engines)

    def state(self, model: str) -> EngineState:
        """The state of a model, whether consumers hold it or not."""
        return self._engines[model].state

    def has_failed(self, model: str) -> bool:
        """Does the engine not start?"""
        return self._engines[model].state in _STOPPED

    def reason(self, model: str) -> str:
        """The reason for which an engine does not serve."""
        return self._engines[model].exit_reason or "look at its log"

    def begin_load(self, model: str, memory_bytes: int, *, quietly: bool = False) -> None:
        """Record that an engine is started. With `quietly`, the change is reported with the next one."""
        engine = self._engines[model]
        engine.num_failed_starts, engine.exit_reason, engine.memory_bytes = 0, None, memory_bytes
        self._set(engine, EngineState.LOADING, quietly=quietly)

    def set_unloaded(self, model: str) -> None:
        """Record that a model is not in memory, and loads when it is needed."""
        engine = self._engines[model]
        engine.exit_reason = engine.memory_bytes = engine.info = engine.activity = None
        self._set(engine, EngineState.UNLOADED)

    def add_exit(self, model: str, exit_code: int, log: Path) -> None:
        """Record an engine that ended without being stopped."""
        engine = self._engines[model]
        engine.num_exits += 1
        engine.exit_reason = exit_reason(exit_code, _last_line(log))
        self.counters.add(CounterName.ENGINE_DEATHS, model)
        if engine.state is EngineState.READY:
            self._set(engine, EngineState.LOADING)
            return
        engine.num_failed_starts += 1
        if exit_code >= 0 or engine.num_failed_starts > self._tolerated_exits:
            self._set(engine, EngineState.MISSING if exit_code == Exit.NO_FILE else EngineState.FAILED)

    def fail(self, model: str, reason: str | None = None) -> None:
        """Record an engine that is not started again; without a reason it keeps its own."""
        engine = self._engines[model]
        engine.exit_reason = reason or engine.exit_reason or "it was not ready in time"
        engine.memory_bytes = engine.info = engine.activity = None
        if engine.state not in _STOPPED:
            self._set(engine, EngineState.FAILED)

    def set_ready(self, model: str, info: EngineInfo) -> None:
        """Record that an engine has replied."""
        engine = self._engines[model]
        if info.warning is not None and (engine.info is None or info.warning != engine.info.warning):
            log.warning("model_warning", model=model, warning=info.warning)
        is_other = engine.info is not None and engine.info != info
        engine.num_failed_starts, engine.exit_reason = 0, None
        if info != engine.info:
            engine.info = info
            engine.settings_json = None if info.settings is None else msgspec.json.encode(info.settings).decode()
        self._set(engine, EngineState.READY, quietly=is_other)
        if is_other:  # such as the slots that are fastest
            self.on_change()

    def set_remark(self, model: str, remark: str | None) -> None:
        """Set a remark on a model that its engine does not make; it is reported in front of the engine's own."""
        engine = self._engines[model]
        if engine.remark != remark:
            engine.remark = remark
            self.on_change()

    def set_activity(self, model: str, activity: EngineActivity | None) -> None:
        """Set the activity of an engine; None while it does not answer."""
        self._engines[model].activity = activity

    def set_held(self, models: Collection[str]) -> None:
        """Set the models that the consumers take work of; others that have replied are reported as loading."""
        if self._held != frozenset(models):
            self._held = frozenset(models)
            self.on_change()

    def status(self) -> Status:
        """The report of the launcher's heartbeat."""
        return Status(
            poll_seconds=self.polled_seconds(),
            engines=[self._report(model, engine) for model, engine in self._engines.items()],
            totals=self.counters.totals(),
        )

    def _report(self, model: str, engine: _Engine) -> EngineReport:
        is_waiting = engine.state is EngineState.READY and model not in self._held
        info = engine.info
        return EngineReport(
            model=model,
            num_deaths=engine.num_exits,
            exit_reason=engine.exit_reason,
            state=EngineState.LOADING if is_waiting else engine.state,
            warning=engine.remark or (None if info is None else info.warning),
            device=None if engine.memory_bytes is None else self._device,
            memory_bytes=engine.memory_bytes,
            slots=None if info is None else info.slots,
            context_size=None if info is None else info.context_size,
            settings_json=None if info is None else engine.settings_json,
            activity=engine.activity,
        )

    def _set(self, engine: _Engine, state: EngineState, *, quietly: bool = False) -> None:
        if engine.state is not state:
            engine.state = state
            if not quietly:
                self.on_change()


def exit_reason(exit_code: int, last_line: str = "") -> str:
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
