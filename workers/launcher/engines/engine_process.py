"""Engine process: one load of a model, from the start of its engine until that has stopped.

LOADING ──the engine answers──> READY ──retire──> RETIRING ──no consumer holds it──> (stopping) ──> (stopped)
   └──it does not start──> (failed)
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from core.failpoints import Point, failpoint
from core.models.model_files import ModelConfig
from core.process.child_process import exit_report
from core.process.log_rotation import LogRotation
from core.process.supervisor import SupervisedProcess
from core.settings import Settings
from engine.config import EngineConfig
from engine.process.client import HEALTH_SECONDS, EngineClient
from workers.launcher.engines.health_check import HealthCheck
from workers.residency.link import Held, LinkedModel, Mode, is_held
from workers.residency.types import NEVER, Resident, ResidentState, RetireHow
from workers.runtime.host_paths import model_hash

_READY_SECONDS: Final = 600.0
_READY_MARGIN: Final = 30.0
_STOP_SECONDS: Final = 2.0
_SILENT_SECONDS: Final = 3.0  # added to two hang limits, so that the engine's own watchdog acts first


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What is loaded: a model as its file describes it now, and the bytes that it needs on this device.

    `environment` pins its process to its devices, before CUDA loads.
    """

    model: ModelConfig
    stamp: str
    config: EngineConfig
    environment: dict[str, str]
    num_bytes: int


def load_limit(config: EngineConfig) -> float:
    """Seconds that a load may take; the engine itself watches the server of a `command`, for as long as its file says."""
    upstream = config.upstream
    needed = upstream.ready_seconds + _READY_MARGIN if upstream is not None and upstream.command else 0.0
    return max(_READY_SECONDS, needed)


class EngineProcess:
    """One load. `process` is started and restarted by the launcher's main thread, which calls all methods."""

    def __init__(self, plan: LoadPlan, process: SupervisedProcess, settings: Settings, now: float) -> None:
        self.plan = plan
        self.name = plan.model.name
        self.load_id = secrets.token_hex(8)
        self.process = process
        self.state = ResidentState.LOADING
        self.started_at = now
        self.ready_at = NEVER
        self.is_unwanted = False
        self.is_for_chat = False
        self.exit_report = ""  # of its last process
        self._retiring: RetireHow | None = None
        self._revision: int | None = None  # of the link's set that retires it
        self._stopping_at: float | None = None
        self._last_chat_at = self._last_used_at = NEVER
        self._num_chats = self._num_lines = 0
        self._num_begun: dict[str, int] = {}
        self._rotation = LogRotation(process.log, settings.log_bytes)
        process.start()
        self.client = EngineClient(plan.config.endpoint, f"launcher-{os.getpid()}", hello_seconds=HEALTH_SECONDS)
        silence_seconds = 2 * settings.engine_hang_seconds + _SILENT_SECONDS
        self._health = HealthCheck(process, self.client, silence_seconds)
        self._config_json = plan.model.model_dump_json()
        self._hash = _Hash(settings, plan.model.weights)

    @property
    def load_seconds(self) -> float:
        """Seconds that the load took; 0 while it loads."""
        return max(0.0, self.ready_at - self.started_at)

    @property
    def has_answered(self) -> bool:
        """Does the engine that runs now answer?"""
        return self._health.has_answered and self.client.info is not None

    def is_late(self, now: float) -> bool:
        """Has it been loading for too long?"""
        return now - self.started_at > load_limit(self.plan.config)

    def check(self, now: float) -> None:
        """Restart the engine if it has ended, and kill it if it is silent."""
        self.process.restart_if_exited(now)
        self._health.check(now)
        self._rotation.rotate_if_large()

    def note_exit(self, exit_code: int) -> None:
        """Keep the report of a process that has ended."""
        self.exit_report = exit_report(self.process.name, exit_code, self.process.log)

    def try_ready(self, now: float) -> bool:
        """Become READY once the engine answers; return whether it did now."""
        if self.state is not ResidentState.LOADING or not self.has_answered or not self._hash.is_done:
            return False
        self.state, self.ready_at = ResidentState.READY, now
        if self.is_for_chat:
            self._last_chat_at = now
        return True

    def retire(self, how: RetireHow) -> None:
        """Let the consumers begin nothing new; with ABORT they also give back what may run again."""
        self.state, self._retiring, self._revision = ResidentState.RETIRING, how, None

    def published(self, revision: int) -> None:
        """Note that the link's set of this revision has its mode."""
        if self.state is ResidentState.RETIRING and self._revision is None:
            self._revision = revision
            failpoint(Point.RETIRE_SAID)

    def try_stop(self, reports: Mapping[str, Held], now: float) -> bool:
        """Stop a retired engine that no consumer holds; return whether it has ended."""
        if self._stopping_at is None:
            if self._revision is None or is_held(reports.values(), self.load_id, self._revision):
                return False
            self.begin_stop(now)
            failpoint(Point.RETIRE_STOPPING)
        child = self.process.child
        if child is not None and child.exit_code() is None:
            if now - (self._stopping_at or now) > _STOP_SECONDS:
                child.send(signal.SIGKILL)
            return False
        self.stop(0)
        return True

    @property
    def is_steady(self) -> bool:
        """Does it serve, and is its process neither loading nor restarting?"""
        return self.state is ResidentState.READY and self.process.child is not None and self.has_answered

    @property
    def is_used(self) -> bool:
        """Do the consumers run any work of it?"""
        return bool(self._num_chats or self._num_lines)

    @property
    def is_stopping(self) -> bool:
        """Was the engine asked to end?"""
        return self._stopping_at is not None

    def begin_stop(self, now: float) -> None:
        """Ask the engine to end; what it leaves behind is no crash."""
        self._stopping_at = now
        if self.process.child is not None:
            self.process.child.send(signal.SIGTERM)

    def stop(self, seconds: float) -> None:
        """End the engine, within these seconds."""
        self.process.stop(seconds)
        self.client.close()

    def note_use(self, reports: Mapping[str, Held], now: float) -> None:
        """Take over what the consumers report of it."""
        used = {
            kind: held for kind, report in reports.items() for held in report.models if held.load_id == self.load_id
        }
        self._num_chats, self._num_lines = (used[kind].num_running if kind in used else 0 for kind in ("chat", "batch"))
        for kind, held in used.items():
            if held.num_running or held.num_begun != self._num_begun.get(kind, 0):
                self._last_used_at = now
                if kind == "chat":
                    self._last_chat_at = now
            self._num_begun[kind] = held.num_begun

    def is_held_by(self, reports: Mapping[str, Held], kinds: Collection[str]) -> bool:
        """Do the consumers of all these kinds take work of it?"""
        return self.state is ResidentState.READY and all(
            kind in reports and any(each.load_id == self.load_id for each in reports[kind].models) for kind in kinds
        )

    def linked(self) -> LinkedModel | None:
        """The entry of the link's set; None while it loads and once it stops."""
        if self.state is ResidentState.LOADING or self._stopping_at is not None:
            return None
        return LinkedModel(
            load_id=self.load_id,
            name=self.name,
            config=self._config_json,
            endpoint=self.plan.config.endpoint,
            model_hash=self._hash.value,
            mode=_MODES[self._retiring],
        )

    def resident(self) -> Resident:
        """Its entry for the policy."""
        return Resident(
            name=self.name,
            num_bytes=self.plan.num_bytes,
            state=self.state,
            ready_at=self.ready_at,
            load_seconds=self.load_seconds,
            num_chats=self._num_chats,
            num_lines=self._num_lines,
            last_chat_at=self._last_chat_at,
            last_used_at=self._last_used_at,
            retiring=self._retiring,
            is_unwanted=self.is_unwanted,
        )


_MODES: Final = {None: Mode.SERVING, RetireHow.DRAIN: Mode.DRAINING, RetireHow.ABORT: Mode.ABORTING}


class _Hash:
    """The hash of a model file, computed in a thread: a large file takes minutes when it is new."""

    def __init__(self, settings: Settings, path: str) -> None:
        self.value: str | None = None
        self.is_done = False
        self._compute: Callable[[], str | None] = lambda: model_hash(settings, path)
        threading.Thread(target=self._run, name="model-hash", daemon=True).start()

    def _run(self) -> None:
        try:
            self.value = self._compute()
        except OSError:  # the engine finds it, too
            self.value = None
        finally:
            self.is_done = True
