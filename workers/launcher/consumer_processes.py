"""Consumer processes: starts and restarts the chat and the batch consumer of a launcher, and stops them."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from core.devices.environment import device_environment
from core.devices.inventory import Device
from core.logs import device_log
from core.process.child_process import ChildFailed
from core.process.fork_server import ForkServer
from core.process.log_rotation import LogRotation
from core.process.supervisor import SupervisedProcess
from core.settings import Settings
from workers.residency.link import Held, LinkServer

log = structlog.get_logger()

KINDS: Final = ("chat", "batch")
_READY_SECONDS: Final = 600.0
_FROZEN_SECONDS: Final = 30.0


class ConsumerProcesses:
    """The consumers of one launcher, which they follow over its link."""

    def __init__(
        self, settings: Settings, link: LinkServer, slot: str, logs: Path, device: Device, fork_server: ForkServer
    ) -> None:
        self._link = link
        self._processes = {
            kind: SupervisedProcess(
                kind,
                [sys.executable, "-P", "-m", "workers.consumers.main", kind, "--link", str(link.path), "--slot", slot],
                logs / device_log(kind, device.name),
                device_environment([device]),
                settings.engine_restart_seconds,
                fork_server=fork_server,
            )
            for kind in KINDS
        }
        self._rotations = [LogRotation(process.log, settings.log_bytes) for process in self._processes.values()]
        self._starting: dict[str, float] = {}  # deadlines of those that were never ready

    def start(self) -> None:
        """Start both."""
        for kind, process in self._processes.items():
            process.start()
            self._starting[kind] = time.monotonic() + _READY_SECONDS

    @property
    def are_ready(self) -> bool:
        """Has each of them been ready once?"""
        return not self._starting

    @property
    def are_running(self) -> bool:
        """Has none of them ended, or is about to be restarted?"""
        return all(process.child is not None for process in self._processes.values())

    def check(self, now: float) -> None:
        """Restart what has ended. Raises ChildFailed for a consumer that exits with an error before it was ever ready."""
        for kind, process in self._processes.items():
            if kind in self._starting:
                self._check_start(kind, process, now)
            process.restart_if_exited(now)
        for rotation in self._rotations:
            rotation.rotate_if_large()

    def _check_start(self, kind: str, process: SupervisedProcess, now: float) -> None:
        child = process.child
        if child is None:
            return
        if child.ready_status(0) is not None:
            del self._starting[kind]
        elif (child.exit_code() or 0) > 0 or now > self._starting[kind]:
            raise ChildFailed(child.exit_report())

    def reports(self) -> Mapping[str, Held]:
        """The last report of each consumer that runs, by kind; none of one that has not reported yet, and holds nothing."""
        reports = {}
        for kind, process in self._processes.items():
            child = process.child
            if child is not None and child.exit_code() is None:
                held = self._link.held(kind, child.pid)
                if held is not None:
                    reports[kind] = held
        return reports

    def pids(self) -> dict[str, int]:
        """The process ids of those that run, by kind. Callable from any thread."""
        children = {kind: process.child for kind, process in self._processes.items()}
        return {kind: child.pid for kind, child in children.items() if child is not None}

    def kill_frozen(self, now: float) -> None:
        """Kill consumers that have not reported for long: they keep a model that is to leave, and its work."""
        for kind, process in self._processes.items():
            child = process.child
            if child is not None and self._link.silent_seconds(kind, child.pid, now) > _FROZEN_SECONDS:
                log.error("consumer_unresponsive", name=kind)
                child.send(signal.SIGKILL)

    def problem(self, now: float) -> str:
        """Describe a consumer that has ended, or has not reported for long; empty without one."""
        for kind, process in self._processes.items():
            child = process.child
            if child is None or child.exit_code() is not None:
                if kind not in self._starting:
                    return f"its {kind} process has ended, and is started again"
            elif (silent_seconds := self._link.silent_seconds(kind, child.pid, now)) > _FROZEN_SECONDS:
                return f"its {kind} process has not reported for {silent_seconds:.0f} s"
        return ""

    def stop(self, drain_seconds: float) -> None:
        """Let them drain, then kill them."""
        running = [process.child for process in self._processes.values() if process.child is not None]
        for child in running:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + drain_seconds
        for child in running:
            child.wait(
                max(0.0, deadline - time.monotonic())
            )  # without a second signal, which would cut its drain short
            child.stop(signal.SIGKILL, 0)
