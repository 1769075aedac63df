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

from core.children import Child, ChildFailed, StartInterrupted, notify_ready
from core.errors import ConfigError, MillraceError
from core.logs import configure_logging
from core.models import ModelBackend, ModelConfig, load_models
from core.settings import Settings, load_settings
from core.sockets import private_directory
from core.supervised import Supervised
from db.schema import check_schema
from db.sessions import database_engine
from engine.client import EngineClient
from engine.config import (
    AUTO_SLOTS,
    Backend,
    EngineConfig,
    KvLayout,
    KvType,
    LoraAdapter,
    Pooling,
    Switch,
)
from workers.context import Database
from workers.crash_log import CrashLog
from workers.endpoints import engine_endpoint, model_hash
from workers.obituaries import Obituaries
from workers.presence import Presence, launcher_identity

log = structlog.get_logger()

_READY_SECONDS: Final = 600.0
_LATE_SECONDS: Final = 0.4


def engine_config(settings: Settings, model: ModelConfig, device: str) -> EngineConfig:
    """What a model file and the settings mean to an engine."""
    slots = _slots(settings, model)
    return EngineConfig(
        model=model.name,
        endpoint=engine_endpoint(settings, model.name, device),
        backend=Backend.FAKE if model.backend is ModelBackend.FAKE else Backend.LLAMA,
        model_path=model.parameters.model,
        context_size=model.context_size,
        slots=slots,
        spare_slots=model.spare_slots,
        threads=model.threads,
        threads_batch=model.threads_batch,
        gpu_layers=0 if device == "cpu" else model.gpu_layers,
        batch_tokens=max(model.batch_tokens, slots),
        ubatch_tokens=model.ubatch_tokens,
        prefill_tokens=model.prefill_tokens,
        kv_layout=KvLayout(model.kv_layout),
        cache_type_k=KvType(model.cache_type_k),
        cache_type_v=KvType(model.cache_type_v),
        flash_attention=Switch(model.flash_attention),
        context_shift=model.context_shift,
        speculation=Switch(model.speculation),
        jump_forward=model.jump_forward,
        embeddings=model.embeddings,
        pooling=Pooling(model.pooling),
        lora=[LoraAdapter(path=adapter.path, scale=adapter.scale) for adapter in model.lora],
        chat_template=model.chat_template,
        stopwords=list(model.stopwords),
        step_seconds=model.step_seconds,
        hang_seconds=settings.engine_hang_seconds,
    )


def _slots(settings: Settings, model: ModelConfig) -> int:
    """The fake has no memory to size them from."""
    if model.slots == "auto":
        return settings.slots if model.backend is ModelBackend.FAKE else AUTO_SLOTS
    return model.slots or settings.slots


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
        self.obituaries = Obituaries([model.name for model in models])
        self._logs = logs = private_directory(settings.state_dir / "logs")
        environment = device_environment(device)
        pause = settings.engine_restart_seconds
        worker = f"{socket.gethostname()}/{device}"
        self._crashes = CrashLog(database_engine(settings.database_url or "", pool_size=1), worker, self._learned)
        self._engines = [
            Supervised(
                f"engine-{model.name}",
                [sys.executable, "-P", "-m", "engine.server", _json(engine_config(settings, model, device))],
                logs / f"engine-{model.name}.log",
                environment,
                pause,
                patience=settings.line_attempts,
                died=partial(self._died, model.name),
            )
            for model in models
        ]
        names = ",".join(model.name for model in models)
        self._consumers = [
            Supervised(
                kind,
                [sys.executable, "-P", "-m", "workers.consumer", kind, "--models", names, "--device", device],
                logs / f"{kind}.log",
                environment,
                pause,
            )
            for kind in ("chat", "batch")
        ]

    def run(self, is_stopping: threading.Event) -> None:
        """Until told to stop; children are started by this thread, which must be the main one."""
        try:
            self._start(is_stopping.is_set)
            notify_ready()
            log.info("worker_ready", device=self._device, models=[model.name for model in self._models])
            while not is_stopping.wait(0.1):
                for child in (*self._engines, *self._consumers):
                    child.tend(time.monotonic())
        except StartInterrupted:
            log.info("stopped_while_starting")
        finally:
            self._stop()

    def _died(self, model: str, exit_code: int) -> None:
        """Of an engine; with it goes what only it knew, except for the end of its log."""
        self._crashes.died(model, exit_code)
        self.obituaries.add(model, exit_code, self._logs / f"engine-{model}.log")

    def _learned(self, model: str, crashes: int) -> None:
        """Crashes that found their cause are forgiven; with too many others a quick restart only burns the machine."""
        is_degraded = crashes > self._settings.engine_crashes
        if is_degraded:
            log.error("engine_degraded", model=model, crashes=crashes)
        for served, engine in zip(self._models, self._engines, strict=True):
            if served.name == model:
                engine.learn(crashes, is_hopeless=is_degraded)

    def _start(self, is_stopping: Callable[[], bool]) -> None:
        self._crashes.start()
        engines = [engine.start() for engine in self._engines]
        for model in self._models:
            model_hash(self._settings, model.parameters.model)
        for model, child in zip(self._models, engines, strict=True):
            self._wait_engine(model, child, is_stopping)
        consumers = [consumer.start() for consumer in self._consumers]
        for child in consumers:
            child.wait_ready(_READY_SECONDS, is_stopping)

    def _wait_engine(self, model: ModelConfig, child: Child, is_stopping: Callable[[], bool]) -> None:
        client = EngineClient(engine_endpoint(self._settings, model.name, self._device), f"launcher-{os.getpid()}")
        deadline = time.monotonic() + _READY_SECONDS
        try:
            while True:
                try:
                    client.wait_ready(0.2)
                    return
                except TimeoutError:
                    if is_stopping():
                        raise StartInterrupted from None
                    if child.exit_code() is not None:
                        self._died(model.name, child.exit_code() or 0)
                    if child.exit_code() is not None or time.monotonic() > deadline:
                        raise ChildFailed(f"The model {model.name} did not load. {child.obituary()}") from None
        finally:
            client.close()

    def _stop(self) -> None:
        """Consumers first: they give back what they hold while the engines still answer."""
        running = [child.child for child in self._consumers if child.child is not None]
        for child in running:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.drain_seconds + _LATE_SECONDS
        for child in running:
            child.wait(max(0.0, deadline - time.monotonic()))  # a second signal would hurry it
            child.stop(signal.SIGKILL, 0)
        engines = [engine.child for engine in self._engines if engine.child is not None]
        for child in engines:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + _LATE_SECONDS
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
    presence = Presence(identity, database, status, seconds=settings.heartbeat_seconds)
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
