"""Engines of a launcher: starts, watches, retires and stops them. Each is one load of a model."""

from __future__ import annotations

import signal
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import structlog

from core.failpoints import Point, failpoint
from core.logs import engine_log
from core.process.supervisor import SupervisedProcess
from core.settings import Settings
from engine.process.exit_codes import NOT_LOADED
from workers.launcher.consumer_processes import ConsumerProcesses
from workers.launcher.engines.crash_log import CrashLog
from workers.launcher.engines.engine_process import EngineProcess, LoadPlan
from workers.launcher.engines.engine_reports import EngineReports, exit_reason
from workers.residency.link import LinkedModel
from workers.residency.types import Resident, ResidentState, RetireHow

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine has answered for the first time."""

    engine: EngineProcess


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """An engine does not start; `report` is for the log of an operator."""

    engine: EngineProcess
    report: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """A retired engine has ended: its memory is free."""

    engine: EngineProcess


Event = Loaded | LoadFailed | Stopped


class Engines:
    """The engines by model. Only the launcher's main thread uses it, apart from `on_crash_count` and `pids`."""

    crash_log: CrashLog | None = None

    def __init__(
        self,
        settings: Settings,
        logs: Path,
        device: str,
        reports: EngineReports,
    ) -> None:
        self._settings = settings
        self._logs = logs
        self._device = device
        self._reports = reports
        self._engines: dict[str, EngineProcess] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._engines

    def get(self, model: str) -> EngineProcess | None:
        """The engine of a model in memory."""
        return self._engines.get(model)

    def all(self) -> list[EngineProcess]:
        """All engines, also those that load or leave."""
        return list(self._engines.values())

    def pids(self) -> dict[str, int]:
        """The process ids of those that run, by model. Callable from any thread."""
        children = {engine.name: engine.process.child for engine in self.all()}
        return {model: child.pid for model, child in children.items() if child is not None}

    def start(self, plan: LoadPlan, now: float) -> EngineProcess:
        """Start the engine of a model that is not in memory."""
        name = plan.model.name
        module = "engine.upstream.server" if plan.config.upstream is not None else "engine.process.server"
        command = [sys.executable, "-P", "-m", module, msgspec.json.encode(plan.config).decode()]
        process = SupervisedProcess(
            f"engine-{name}",
            command,
            self._logs / engine_log(name, self._device),
            plan.environment,
            self._settings.engine_restart_seconds,
            tolerated_exits=self._settings.line_attempts,
            on_exit=partial(self._on_exit, name),
        )
        engine = self._engines[name] = EngineProcess(plan, process, self._settings, now)
        log.info("model_loading", model=name, load=engine.load_id, bytes=plan.num_bytes)
        return engine

    def retire(self, model: str, how: RetireHow) -> None:
        """Let a model leave."""
        log.info("model_retiring", model=model, how=str(how))
        self._engines[model].retire(how)

    def advance(self, consumers: ConsumerProcesses, now: float) -> list[Event]:
        """Look at all engines, and return what has happened."""
        reports = consumers.reports()
        events: list[Event] = []
        for engine in self.all():
            if not engine.is_stopping:
                engine.check(now)
            engine.note_use(reports, now)
            if engine.state is ResidentState.LOADING:
                events += self._advance_load(engine, now)
            elif engine.state is ResidentState.READY and engine.has_answered and engine.client.info is not None:
                self._reports.set_ready(engine.name, engine.client.info)
            elif engine.state is ResidentState.RETIRING:
                consumers.kill_frozen(now)
                if engine.try_stop(reports, now):
                    del self._engines[engine.name]
                    failpoint(Point.RETIRE_FREED)
                    events.append(Stopped(engine))
        return events

    def _advance_load(self, engine: EngineProcess, now: float) -> list[Event]:
        if self._reports.has_failed(engine.name) or engine.is_late(now):
            child = engine.process.child
            report = engine.exit_report or ("" if child is None else child.exit_report())
            self._reports.fail(engine.name)
            engine.stop(0)
            del self._engines[engine.name]
            return [LoadFailed(engine, report)]
        if engine.try_ready(now):
            assert engine.client.info is not None, "it has answered"
            self._reports.set_ready(engine.name, engine.client.info)
            return [Loaded(engine)]
        return []

    def _on_exit(self, model: str, exit_code: int) -> None:
        """Record the exit of an engine that was not stopped."""
        engine = self._engines[model]
        engine.note_exit(exit_code)
        if self.crash_log is not None and exit_code not in NOT_LOADED:  # not to load is no unexplained crash
            self.crash_log.add(model, exit_code, exit_reason(exit_code))
        self._reports.add_exit(model, exit_code, self._logs / engine_log(model, self._device))

    def on_crash_count(self, model: str, crashes: int) -> None:
        """Set the restart pause by the number of unexplained crashes: with too many, quick restarts only waste the machine.

        Callable from any thread.
        """
        is_degraded = crashes > self._settings.engine_crashes
        if is_degraded:
            log.error("engine_degraded", model=model, crashes=crashes)
        if (engine := self._engines.get(model)) is not None:
            engine.process.set_crash_count(crashes, is_degraded=is_degraded)

    def linked(self) -> list[LinkedModel]:
        """The set for the consumers."""
        return [linked for engine in self.all() if (linked := engine.linked()) is not None]

    def published(self, revision: int) -> None:
        """Note that the link has sent the present set with this revision."""
        for engine in self.all():
            engine.published(revision)

    def residents(self) -> list[Resident]:
        """The entries for the policy."""
        return [engine.resident() for engine in self.all()]

    def held_by_all(self, consumers: ConsumerProcesses, kinds: Collection[str]) -> list[str]:
        """The models that consumers of all these kinds take work of."""
        reports = consumers.reports()
        return [engine.name for engine in self.all() if engine.is_held_by(reports, kinds)]

    def stop(self, seconds: float, now: float) -> None:
        """Stop all; they have nothing to save."""
        for engine in self.all():
            if not engine.is_stopping:
                engine.begin_stop(now)
        for engine in self.all():
            child = engine.process.child
            if child is not None:
                child.wait(seconds)
                child.stop(signal.SIGKILL, 0)
            engine.client.close()
        self._engines.clear()
