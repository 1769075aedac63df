"""The single-machine stack: Postgres, Valkey, the api, a worker and a clerk, as children of one process.

Every child ends with this process, even when it is killed.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import msgspec
import structlog

from cli.interrupts import check_interrupt
from cli.stack.first_key import create_first_key
from cli.stack.services import Services
from core.devices.budget import check_device_memory
from core.devices.inventory import read_inventory
from core.devices.selection import choose_devices
from core.errors import ConfigError
from core.models.model_files import has_weights
from core.models.models_folder import load_models
from core.process.child_process import ChildFailed
from core.process.fork_server import ForkServer
from core.process.listening import bound_socket
from core.process.log_rotation import LogRotation
from core.process.runtime_dirs import private_directory
from core.process.signal_wakeup import woken_by_signals
from core.process.supervisor import SupervisedProcess
from core.queue.reachable import check_queue
from core.readiness import ModelState, model_state
from core.settings import Settings

log = structlog.get_logger()

_READY_SECONDS = 600.0
_GRACE_SECONDS = 4.0
_SERVICE_PAUSE_SECONDS = 2.0
_CHECK_SECONDS = 0.2
_STEADY_CHECK_SECONDS = 2.0


class Stack:
    """The stack as a context manager for the main thread: started on entry, drained and stopped on exit."""

    def __init__(
        self,
        settings: Settings,
        *,
        devices: Sequence[str] = (),
        cpus: Sequence[str] = (),
        creates_key: bool = False,
        fork_server: ForkServer | None = None,
    ) -> None:
        self._settings = settings
        self._fork_server = fork_server
        self._creates_key = creates_key
        self.first_key: str | None = None
        inventory = read_inventory()
        self.devices = choose_devices(devices, inventory, cpus=cpus)
        check_device_memory(settings, self.devices, inventory)
        self.models = _models(settings)
        bound_socket(settings.host, settings.port).close()  # the api would fail a few seconds later
        self._check_metrics_ports()
        private_directory(settings.state_dir)
        self.services = Services(
            settings.state_dir, settings.database_url, settings.redis_url, num_devices=len(self.devices)
        )
        environment = self._environment()
        measured = msgspec.json.encode(self.devices).decode()  # before any engine takes memory
        self._worker = self._child("worker", ["-m", "workers", "--measured", measured], environment)
        of_clerk = {**environment, **self._clerk_metrics()}
        self._clerk = self._child("clerk", ["-m", "workers.consumers.main", "clerk"], of_clerk)
        self._api = self._child("api", ["-m", "api"], environment)
        names = (*(child.name for child in self.children), "postgres", "valkey")
        self._rotations = [LogRotation(self.services.logs / f"{name}.log", settings.log_bytes) for name in names]
        self.url = ""
        self._services_at = 0.0

    @property
    def children(self) -> tuple[SupervisedProcess, ...]:
        """The api, the worker and the clerk."""
        return self._api, self._worker, self._clerk

    def start(self) -> None:
        """Return when everything answers; on failure nothing is left running."""
        try:
            _check_external(self._settings)
        except BaseException:
            self.services.stop()
            raise
        self.services.start(self._load_programs)
        try:
            self.first_key = _migrate(self.services.database_url, self._settings, creates_key=self._creates_key)
            worker = self._worker.start()  # first: its engine takes longest
            api = self._api.start()
            clerk = self._clerk.start()
            self.url = api.wait_ready(_READY_SECONDS, check_interrupt)
            for child in (worker, clerk):
                child.wait_ready(_READY_SECONDS, check_interrupt)
        except BaseException:
            self.stop(drain_seconds=0)
            raise
        self._api.environment["MILLRACE_PORT"] = self.url.rpartition(":")[2]  # the same port after a restart
        self.services.announce(self.url)

    def _load_programs(self) -> None:
        """Import the programs of the children, which are forks."""
        if self._fork_server is not None:
            self._fork_server.load()

    def model_states(self) -> list[ModelState]:
        """The state of each model, as the worker has reported it."""
        from db import workers
        from db.connections import database_engine

        engine = database_engine(self.services.database_url, pool_size=1)
        with engine.connect() as connection:
            seen = workers.list_workers().fetch_all(connection)
        engine.dispose()
        return [model_state(seen, name, self._settings.silence_seconds) for name in self.models]

    def run(self, is_stopping: threading.Event) -> None:
        """Restart dead processes until `is_stopping` is set."""
        with woken_by_signals() as wait:
            while not is_stopping.is_set():
                wait(_STEADY_CHECK_SECONDS if self._is_steady() else _CHECK_SECONDS)
                self.restart_dead()

    def _is_steady(self) -> bool:
        """Does everything run? An end of it wakes the loop."""
        return all(child.child is not None for child in self.children) and time.monotonic() >= self._services_at

    def restart_dead(self) -> None:
        """Restart services and processes that have ended."""
        if self._fork_server is not None:
            self._fork_server.check()
        self._restart_services()
        for child in self.children:
            child.restart_if_exited(time.monotonic())
        for rotation in self._rotations:
            rotation.rotate_if_large()

    def _restart_services(self) -> None:
        """Restart the services; one that does not start, as on a full disk, is tried again later."""
        if time.monotonic() < self._services_at:
            return
        try:
            for name in self.services.restart_dead():
                log.warning("service_restarted", name=name)
        except (ChildFailed, OSError) as error:
            log.error("service_not_restarted", reason=str(error))
            self._services_at = time.monotonic() + _SERVICE_PAUSE_SECONDS

    def refresh_models(self) -> None:
        """Let every process look at the models folder now."""
        for child in self.children:
            if child.child is not None:
                child.child.send(signal.SIGHUP)

    def stop(self, drain_seconds: float | None = None) -> None:
        """Drain the api and the workers at the same time, then stop the broker, then the database."""
        seconds = self._settings.drain_seconds if drain_seconds is None else drain_seconds
        running = [child.child for child in self.children if child.child is not None]
        for process in running:
            process.send(signal.SIGTERM)
        deadline = time.monotonic() + seconds + _GRACE_SECONDS
        for process in running:
            process.wait(max(0.1, deadline - time.monotonic()))
        for child in self.children:
            child.stop(0.1)
        if self._fork_server is not None:
            self._fork_server.close()
        self.services.stop()

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _check_metrics_ports(self) -> None:
        """Raise ConfigError where a worker or the clerk could not serve its metrics."""
        if port := self._settings.metrics_port:
            for offset in range(len(self.devices) + 1):
                bound_socket(self._settings.metrics_host, port + offset, setting="METRICS_PORT").close()

    def _clerk_metrics(self) -> dict[str, str]:
        """The port of the clerk's metrics: the one after those of all devices."""
        port = self._settings.metrics_port
        return {"MILLRACE_METRICS_PORT": str(port + len(self.devices))} if port else {}

    def _environment(self) -> dict[str, str]:
        """Return the settings as environment variables for the children, with the addresses of the services."""
        settings = self._settings
        values = {
            name: str(getattr(settings, name))
            for name in type(settings).model_fields
            if name in settings.model_fields_set and getattr(settings, name) is not None
        }
        values |= {
            "state_dir": str(settings.state_dir.resolve()),
            "models_dir": str(settings.models_dir.resolve()),
            "database_url": self.services.database_url,
            "redis_url": self.services.redis_url,
        }
        if settings.files_url is None and settings.files_root is not None:
            values["files_dir"] = str(settings.files_root.resolve())
        return {f"MILLRACE_{name.upper()}": value for name, value in values.items()}

    def _child(self, name: str, arguments: list[str], environment: dict[str, str]) -> SupervisedProcess:
        # -P: a folder `api` in the working directory must not be imported instead of ours
        command = [sys.executable, "-P", *arguments]
        pause = self._settings.engine_restart_seconds
        log_file = self.services.logs / f"{name}.log"
        return SupervisedProcess(name, command, log_file, dict(environment), pause, fork_server=self._fork_server)


def _models(settings: Settings) -> list[str]:
    """Return the names of the models; raises ConfigError when none of them has its weights."""
    catalog = load_models(settings.models_dir)
    if not catalog.models:
        raise ConfigError(f"There is no model in {settings.models_dir}: add a YAML file, see README.md.")
    if not any(map(has_weights, catalog.models)):
        load_models(settings.models_dir, need_weights=True)  # raises
    return catalog.names()


def _check_external(settings: Settings) -> None:
    """Raise Unreachable when a server that the settings name does not answer, before anything is started."""
    from core.files.open_store import open_file_store
    from db.connections import database_engine, first_connection

    if settings.database_url:
        engine = database_engine(settings.database_url, pool_size=1)
        with first_connection(engine):
            pass
        engine.dispose()
    if settings.redis_url:
        check_queue(settings.redis_url)
    open_file_store(settings).check()


def _migrate(database_url: str, settings: Settings, *, creates_key: bool) -> str | None:
    """Upgrade the schema, and check that the server may be reached as the settings say.

    With `creates_key`, a server that needs a first key gets one; return its text.
    """
    from db.connections import database_engine
    from db.keys import check_exposure, needs_key
    from db.schema_version import upgrade  # Alembic loads slowly, and only a start needs it

    engine = database_engine(database_url, pool_size=1)
    upgrade(engine)
    with engine.begin() as connection:
        key = create_first_key(connection) if creates_key and needs_key(connection, settings) else None
        check_exposure(connection, settings)
    engine.dispose()
    return key
