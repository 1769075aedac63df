"""A worker of one device: `python -m workers --device cpu --models a,b`.

Starts an engine per model and the consumers that feed them, restarts what dies, and takes all of it down in order.
The device is pinned by the environment before anything of CUDA loads.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import structlog

from core.errors import ConfigError, MillraceError
from core.logs import configure_logging
from core.model_files import ModelConfig, load_models
from core.process.child_process import ChildFailed, StartInterrupted, notify_ready
from core.process.runtime_dirs import private_directory
from core.process.supervisor import SupervisedProcess
from core.settings import Settings, load_settings
from db.connections import database_engine
from db.schema_version import check_schema
from engine.config import EngineConfig
from engine.process.client import EngineClient
from engine.process.exit_codes import Exit
from workers.context import Database
from workers.heartbeat import WorkerHeartbeat, launcher_identity
from workers.launcher.crash_log import CrashLog
from workers.launcher.crash_reports import CrashReports
from workers.launcher.engine_config import engine_config
from workers.launcher.health_check import HealthCheck
from workers.runtime.host_paths import engine_endpoint, model_hash

log = structlog.get_logger()

_READY_SECONDS: Final = 600.0
_LATE_SECONDS: Final = 0.4
_LOOK_SECONDS: Final = 0.1
_SILENT_SECONDS: Final = 3.0  # besides two hangs: its own watchdog comes first


def default_device() -> str:
    """The first GPU, or the CPU where there is none."""
    gpus = Path("/proc/driver/nvidia/gpus")
    return "cuda:0" if gpus.is_dir() and any(gpus.iterdir()) else "cpu"


def device_environment(device: str) -> dict[str, str]:
    """What pins a process to its device; raises ConfigError for a device we do not know."""
    if device == "cpu":
        return {"CUDA_VISIBLE_DEVICES": ""}
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number.isdigit():
        raise ConfigError(f"Unknown device {device!r}: use cpu, cuda:0, cuda:1, …")
    return {"CUDA_VISIBLE_DEVICES": number}


class WorkerLauncher:
    """The engines and consumers of one device."""

    def __init__(self, settings: Settings, models: list[ModelConfig], device: str) -> None:
        self._settings = settings
        self._device = device
        self._models = models
        self.obituaries = CrashReports([model.name for model in models])
        self._logs = logs = private_directory(settings.state_dir / "logs")
        environment = device_environment(device)
        pause = settings.engine_restart_seconds
        worker = f"{socket.gethostname()}/{device}"
        self._crashes = CrashLog(database_engine(settings.database_url or "", pool_size=1), worker, self._learned)
        self._engines = {
            model.name: SupervisedProcess(
                f"engine-{model.name}",
                [sys.executable, "-P", "-m", "engine.process.server", _json(engine_config(settings, model, device))],
                logs / f"engine-{model.name}.log",
                environment,
                pause,
                patience=settings.line_attempts,
                died=partial(self._died, model.name),
            )
            for model in models
        }
        self._consumers = [
            SupervisedProcess(
                kind,
                [sys.executable, "-P", "-m", "workers.consumers.main", kind, "--device", device, "--models"],
                logs / f"{kind}.log",
                environment,
                pause,
            )
            for kind in ("chat", "batch")
        ]
        self._hearings: dict[str, HealthCheck] = {}

    def run(self, is_stopping: threading.Event) -> None:
        """Until told to stop; children are started by this thread, which must be the main one."""
        try:
            self._start(is_stopping.is_set)
            notify_ready(",".join(model.name for model in self._models if model.name not in self._engines))
            log.info("worker_ready", device=self._device, models=list(self._engines))
            while not is_stopping.wait(_LOOK_SECONDS):
                self._tend_engines()
                for consumer in self._consumers:
                    consumer.restart_if_dead(time.monotonic())
        except StartInterrupted:
            log.info("stopped_while_starting")
        finally:
            self._stop()

    def _tend_engines(self) -> None:
        now = time.monotonic()
        for engine in self._engines.values():
            engine.restart_if_dead(now)
        for hearing in self._hearings.values():
            hearing.look(now)

    def _died(self, model: str, exit_code: int) -> None:
        """Of an engine; with it goes what only it knew, except for the end of its log."""
        if exit_code != Exit.MODEL:  # a model that does not load is no crash that nobody can explain
            self._crashes.died(model, exit_code)
        self.obituaries.add(model, exit_code, self._logs / f"engine-{model}.log")

    def _learned(self, model: str, crashes: int) -> None:
        """Crashes that found their cause are forgiven; with too many others a quick restart only burns the machine."""
        is_degraded = crashes > self._settings.engine_crashes
        if is_degraded:
            log.error("engine_degraded", model=model, crashes=crashes)
        if (engine := self._engines.get(model)) is not None:
            engine.set_crash_count(crashes, is_degraded=is_degraded)

    def _start(self, is_stopping: Callable[[], bool]) -> None:
        self._crashes.start()
        for model in self._models:
            self._engines[model.name].start()
            self._hearings[model.name] = self._hear(model.name)
        for model in self._models:
            model_hash(self._settings, model.parameters.model)
        self._load(is_stopping)
        for consumer in self._consumers:
            consumer.command.append(",".join(self._engines))
            consumer.start()
        self._wait_consumers(is_stopping)

    def _hear(self, model: str) -> HealthCheck:
        client = EngineClient(engine_endpoint(self._settings, model, self._device), f"launcher-{os.getpid()}")
        return HealthCheck(self._engines[model], client, 2 * self._settings.engine_hang_seconds + _SILENT_SECONDS)

    def _load(self, is_stopping: Callable[[], bool]) -> None:
        """Wait for every engine. A model that does not load is left out, and told of as long as others can be served."""
        failures = []
        for model in self._models:
            try:
                self._wait_engine(model.name, is_stopping)
            except ChildFailed as failure:
                log.error("model_not_loaded", model=model.name, reason=str(failure))
                failures.append(failure)
                del self._engines[model.name]
                self._hearings.pop(model.name).client.close()
        if failures and not self._engines:
            raise failures[0]

    def _wait_engine(self, model: str, is_stopping: Callable[[], bool]) -> None:
        """One that is killed is started again, but not for ever: it may be the model's file that ends it."""
        engine, client = self._engines[model], self._hearings[model].client
        deadline, deaths = time.monotonic() + _READY_SECONDS, 0
        while True:
            try:
                client.wait_ready(0.2)
                return
            except TimeoutError:
                if is_stopping():
                    raise StartInterrupted from None
            child = engine.child
            exit_code = None if child is None else child.exit_code()
            deaths += exit_code is not None
            engine.restart_if_dead(time.monotonic())
            is_final = exit_code is not None and (exit_code >= 0 or deaths > self._settings.line_attempts)
            if is_final or time.monotonic() > deadline:
                exit_report = "" if child is None else child.exit_report()
                engine.stop(0)
                raise ChildFailed(f"The model {model} did not load. {exit_report}") from None

    def _wait_consumers(self, is_stopping: Callable[[], bool]) -> None:
        """One that is killed is started again, as later; one that says why it ends is not."""
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
                    consumer.restart_if_dead(time.monotonic())
            if is_stopping():
                raise StartInterrupted
            self._tend_engines()
            time.sleep(_LOOK_SECONDS / 2)

    def _stop(self) -> None:
        """Consumers first: they give back what they hold while the engines still answer."""
        running = [child.child for child in self._consumers if child.child is not None]
        for child in running:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_seconds + _LATE_SECONDS
        for child in running:
            child.wait(max(0.0, deadline - time.monotonic()))  # a second signal would hurry it
            child.stop(signal.SIGKILL, 0)
        engines = [engine.child for engine in self._engines.values() if engine.child is not None]
        for child in engines:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + _LATE_SECONDS
        for hearing in self._hearings.values():
            hearing.client.close()
        for child in engines:  # they have nothing to save
            child.wait(max(0.0, deadline - time.monotonic()))
            child.stop(signal.SIGKILL, 0)


def _json(config: EngineConfig) -> str:
    return msgspec.json.encode(config).decode()


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(description="A Millrace worker: the engines of one device and what feeds them.")
    parser.add_argument("--device", default=default_device(), help="cpu, cuda:0, cuda:1, …")
    parser.add_argument("--models", default="", help="names, separated by commas; default: all in the models folder")
    arguments = parser.parse_args()
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        database = database_engine(settings.database_url or "", pool_size=1)
        check_schema(database)
        launcher = WorkerLauncher(settings, _models(settings, arguments.models), arguments.device)
        _run(launcher, settings, Database(database), arguments.device, stopping)
    except MillraceError as error:
        sys.exit(f"millrace worker: {error}")


def _run(
    launcher: WorkerLauncher, settings: Settings, database: Database, device: str, is_stopping: threading.Event
) -> None:
    """Its row goes when it was told to stop. When an engine does not start, the row stays: it says why."""
    identity = launcher_identity(settings.state_dir, device)
    status = launcher.obituaries.status
    presence = WorkerHeartbeat(identity, database, status, seconds=settings.heartbeat_seconds)
    presence.start()
    try:
        launcher.run(is_stopping)
    except MillraceError:
        presence.close(is_row_kept=True)
        raise
    presence.close()


def _models(settings: Settings, names: str) -> list[ModelConfig]:
    catalog = load_models(settings.models_dir)
    if not catalog.models:
        raise ConfigError(f"There is no model in {settings.models_dir}: add a YAML file, see README.md.")
    chosen = []
    for name in names.split(",") if names else catalog.names():
        model = catalog.get(name)
        if model is None:
            raise ConfigError(f"There is no model {name!r}; there are: {', '.join(catalog.names())}.")
        chosen.append(model)
    return chosen
