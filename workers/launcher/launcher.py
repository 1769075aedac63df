"""Launcher of a worker on one device, see `workers.launcher.fleet`.

It starts an engine per model and the consumers that feed them, restarts those that end, and stops all in order. Environment
variables pin the processes to the device before CUDA loads.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
import structlog

from core.cpu_cores import usable_cores
from core.devices.environment import device_environment
from core.devices.inventory import Device
from core.errors import ConfigError, MillraceError
from core.logs import device_log, engine_log
from core.models.model_files import ModelConfig
from core.models.models_folder import load_models
from core.process.child_process import ChildFailed, StartInterrupted, notify_ready
from core.process.log_rotation import LogRotation
from core.process.runtime_dirs import private_directory
from core.process.supervisor import SupervisedProcess
from core.settings import Settings
from db.connections import database_engine
from db.schema_version import check_schema
from engine.config import EngineConfig
from engine.process.client import EngineClient
from engine.process.exit_codes import NOT_LOADED
from workers.context import Database
from workers.heartbeat import WorkerHeartbeat, launcher_identity
from workers.launcher.crash_log import CrashLog
from workers.launcher.device_reports import with_device
from workers.launcher.engine_config import engine_config
from workers.launcher.engine_reports import EngineReports
from workers.launcher.health_check import HealthCheck
from workers.residency.placement import engine_devices, owns
from workers.runtime.host_paths import engine_endpoint, model_hash

log = structlog.get_logger()

_READY_SECONDS: Final = 600.0
_GRACE_SECONDS: Final = 0.4
_CHECK_SECONDS: Final = 0.1
_SILENT_SECONDS: Final = 3.0  # added to two hang limits, so that the engine's own watchdog acts first


class WorkerLauncher:
    """The engines and consumers of one device."""

    def __init__(
        self, settings: Settings, models: list[ModelConfig], device: Device, deployment: Sequence[Device] = ()
    ) -> None:
        self._settings = settings
        self._device = device.name
        self._models = models
        self.engine_reports = EngineReports([model.name for model in models], tolerated_exits=settings.line_attempts)
        self._logs = logs = private_directory(settings.state_dir / "logs")
        environment = device_environment([device])
        devices = {model.name: engine_devices(model, device, deployment or [device]) for model in models}
        pause = settings.engine_restart_seconds
        cores = usable_cores()
        worker = f"{socket.gethostname()}/{device.name}"
        self._crash_log = CrashLog(
            database_engine(settings.database_url or "", pool_size=1), worker, self._on_crash_count
        )
        self._engines = {
            model.name: SupervisedProcess(
                f"engine-{model.name}",
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "engine.process.server",
                    _json(engine_config(settings, model, device.name, cores, devices[model.name])),
                ],
                logs / engine_log(model.name, device.name),
                device_environment(devices[model.name]),
                pause,
                tolerated_exits=settings.line_attempts,
                on_exit=partial(self._on_exit, model.name),
            )
            for model in models
        }
        self._consumers = [
            SupervisedProcess(
                kind,
                [sys.executable, "-P", "-m", "workers.consumers.main", kind, "--device", device.name, "--models"],
                logs / device_log(kind, device.name),
                environment,
                pause,
            )
            for kind in ("chat", "batch")
        ]
        children = (*self._engines.values(), *self._consumers)
        self._rotations = [LogRotation(child.log, settings.log_bytes) for child in children]
        self._health_checks: dict[str, HealthCheck] = {}

    def run(self, is_stopping: threading.Event, report: Callable[[], None]) -> None:
        """Run until `is_stopping` is set. This thread starts the children, so it must be the main one.

        `report` writes the reports of the engines, before the worker is called ready.
        """
        try:
            self._start(is_stopping.is_set)
            self.engine_reports.start_serving()
            report()
            notify_ready()
            log.info("worker_ready", device=self._device, models=list(self._engines))
            while not is_stopping.wait(_CHECK_SECONDS):
                self._check_engines()
                for consumer in self._consumers:
                    consumer.restart_if_exited(time.monotonic())
                for rotation in self._rotations:
                    rotation.rotate_if_large()
        except StartInterrupted:
            log.info("stopped_while_starting")
        finally:
            self._stop()

    def _check_engines(self) -> None:
        now = time.monotonic()
        for engine in self._engines.values():
            engine.restart_if_exited(now)
        for model, health_check in self._health_checks.items():
            health_check.check(now)
            if health_check.has_answered and (info := health_check.client.info) is not None:
                self.engine_reports.set_ready(model, info.warning)

    def _on_exit(self, model: str, exit_code: int) -> None:
        """Record the exit of an engine."""
        if exit_code not in NOT_LOADED:  # a model that does not load is no unexplained crash
            self._crash_log.add(model, exit_code)
        self.engine_reports.add_exit(model, exit_code, self._logs / engine_log(model, self._device))

    def _on_crash_count(self, model: str, crashes: int) -> None:
        """Set the restart pause by the number of unexplained crashes: with too many, quick restarts only waste the machine."""
        is_degraded = crashes > self._settings.engine_crashes
        if is_degraded:
            log.error("engine_degraded", model=model, crashes=crashes)
        if (engine := self._engines.get(model)) is not None:
            engine.set_crash_count(crashes, is_degraded=is_degraded)

    def _start(self, is_stopping: Callable[[], bool]) -> None:
        self._crash_log.start()
        for model in self._models:
            self._engines[model.name].start()
            self._health_checks[model.name] = self._new_health_check(model.name)
        for model in self._models:
            model_hash(self._settings, model.parameters.model)
        self._load(is_stopping)
        for consumer in self._consumers:
            consumer.command.append(",".join(self._engines))
            consumer.start()
        self._wait_consumers(is_stopping)

    def _new_health_check(self, model: str) -> HealthCheck:
        client = EngineClient(engine_endpoint(self._settings, model, self._device), f"launcher-{os.getpid()}")
        return HealthCheck(self._engines[model], client, 2 * self._settings.engine_hang_seconds + _SILENT_SECONDS)

    def _load(self, is_stopping: Callable[[], bool]) -> None:
        """Wait for every engine. A model that does not load is left out and logged, unless no model is left."""
        failures = []
        for model in self._models:
            try:
                self._wait_engine(model.name, is_stopping)
            except ChildFailed as failure:
                log.error("model_not_loaded", model=model.name, reason=str(failure))
                self.engine_reports.give_up(model.name)
                failures.append(failure)
                del self._engines[model.name]
                self._health_checks.pop(model.name).client.close()
        if failures and not self._engines:
            raise failures[0]

    def _wait_engine(self, model: str, is_stopping: Callable[[], bool]) -> None:
        """Wait for one engine. A killed one is started again, but not for ever: the model file may be the cause."""
        engine, client = self._engines[model], self._health_checks[model].client
        deadline, deaths = time.monotonic() + _READY_SECONDS, 0
        while True:
            try:
                self.engine_reports.set_ready(model, client.wait_ready(0.2).warning)
                return
            except TimeoutError:
                if is_stopping():
                    raise StartInterrupted from None
            child = engine.child
            exit_code = None if child is None else child.exit_code()
            deaths += exit_code is not None
            engine.restart_if_exited(time.monotonic())
            is_final = exit_code is not None and (exit_code >= 0 or deaths > self._settings.line_attempts)
            if is_final or time.monotonic() > deadline:
                exit_report = "" if child is None else child.exit_report()
                engine.stop(0)
                raise ChildFailed(f"The model {model} did not load. {exit_report}") from None

    def _wait_consumers(self, is_stopping: Callable[[], bool]) -> None:
        """Wait for all consumers. A killed one is started again, as later; one that exits with an error is not."""
        deadline, waiting = time.monotonic() + _READY_SECONDS, list(self._consumers)
        while waiting:
            for consumer in list(waiting):
                child = consumer.child
                exit_code = None if child is None else child.exit_code()
                if child is not None and child.ready_status(0) is not None:
                    waiting.remove(consumer)
                elif child is not None and ((exit_code or 0) > 0 or time.monotonic() > deadline):
                    raise ChildFailed(child.exit_report())
                elif child is None or exit_code is not None:
                    consumer.restart_if_exited(time.monotonic())
            if is_stopping():
                raise StartInterrupted
            self._check_engines()
            time.sleep(_CHECK_SECONDS / 2)

    def _stop(self) -> None:
        """Stop the consumers first: they give back their work while the engines still answer."""
        running = [child.child for child in self._consumers if child.child is not None]
        for child in running:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_seconds + _GRACE_SECONDS
        for child in running:
            child.wait(
                max(0.0, deadline - time.monotonic())
            )  # without a second signal, which would cut its drain short
            child.stop(signal.SIGKILL, 0)
        engines = [engine.child for engine in self._engines.values() if engine.child is not None]
        for child in engines:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        for health_check in self._health_checks.values():
            health_check.client.close()
        for child in engines:  # engines have nothing to save
            child.wait(max(0.0, deadline - time.monotonic()))
            child.stop(signal.SIGKILL, 0)


def _json(config: EngineConfig) -> str:
    return msgspec.json.encode(config).decode()


def run_launcher(
    settings: Settings, models: str, device: Device, deployment: Sequence[Device], is_stopping: threading.Event
) -> None:
    """Run the launcher of one of a worker's devices until it is stopped. `models` are names, separated by commas; empty: all."""
    database = database_engine(settings.database_url or "", pool_size=1)
    check_schema(database)
    owned = [model for model in _models(settings, models) if owns(model, device, deployment)]
    launcher = WorkerLauncher(settings, owned, device, deployment)
    _run(launcher, settings, Database(database), device, is_stopping)


def _run(
    launcher: WorkerLauncher, settings: Settings, database: Database, device: Device, is_stopping: threading.Event
) -> None:
    """Run it with a heartbeat. Its row is removed in the end, but kept if an engine does not start, since it has the reason."""
    identity = launcher_identity(settings.state_dir, device.name)
    reports = launcher.engine_reports
    status = with_device(reports.status, device, budget_bytes=None)
    heartbeat = WorkerHeartbeat(identity, database, status, seconds=settings.heartbeat_seconds)
    reports.on_change = heartbeat.wake
    heartbeat.start()
    try:
        launcher.run(is_stopping, heartbeat.report)
    except MillraceError:
        heartbeat.close(is_row_kept=True)
        raise
    heartbeat.close()


def _models(settings: Settings, names: str) -> list[ModelConfig]:
    catalog = load_models(settings.models_dir)
    if not catalog.models:
        raise ConfigError(f"There is no model in {settings.models_dir}: add a YAML file, see README.md.")
    chosen = []
    for name in names.split(",") if names else catalog.names():
        model = catalog.get(name)
        if model is None:
            raise ConfigError(f"There is no model {name!r}. Models: {', '.join(catalog.names())}.")
        chosen.append(model)
    return chosen
