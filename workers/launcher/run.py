"""Run of a launcher: builds its parts, and runs them until it is stopped. See `workers.launcher.fleet`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import structlog

from core.cpu_cores import usable_cores
from core.devices.budget import UNLIMITED
from core.devices.inventory import Device
from core.errors import ConfigError, MillraceError
from core.models.live_catalog import LiveCatalog
from core.process.fork_server import ForkServer
from core.process.hangup import on_hangup
from core.process.resource_use import OwnProcess
from core.process.runtime_dirs import private_directory, socket_directory
from core.process.signs_of_life import Role, SignsOfLife
from core.settings import Settings, split_commas
from db.connections import database_engine
from db.model_loads import record_load
from db.schema_version import check_schema
from workers.context import Database
from workers.heartbeat import Status, WorkerHeartbeat, consumer_slot, launcher_identity
from workers.launcher.consumer_processes import KINDS, ConsumerProcesses
from workers.launcher.device_reports import with_device
from workers.launcher.engines.activity import ActivityReporter
from workers.launcher.engines.crash_log import CrashLog
from workers.launcher.engines.engine_reports import EngineReports
from workers.launcher.engines.engines import Engines
from workers.launcher.failed_callers import FailedCallers
from workers.launcher.launcher import WorkerLauncher
from workers.launcher.residency_control import ResidencyControl
from workers.launcher.servable_models import ServableModels
from workers.metrics.server import open_metrics_server
from workers.metrics.snapshots import snapshot_socket
from workers.residency.demand import DemandReader
from workers.residency.link import LinkServer
from workers.residency.policy import ResidencyPolicy
from workers.residency.types import Limits

log = structlog.get_logger()


def run_launcher(
    settings: Settings,
    models: str,
    device: Device,
    deployment: Sequence[Device],
    is_stopping: threading.Event,
    fork_server: ForkServer,
) -> None:
    """Run the launcher of one of a worker's devices until it is stopped. `models` are names, separated by commas; empty: all.

    `fork_server` starts the consumers.
    """
    database = database_engine(
        settings.database_url or "", pool_size=1
    )  # and one more for each thread that finds it in use
    check_schema(database)
    names = split_commas(models)
    catalog = _catalog(settings, names)
    servable = ServableModels(settings, catalog, names, device, deployment or [device], usable_cores())
    slot = consumer_slot(settings.state_dir, device.name, models)
    position = deployment.index(device) if device in deployment else 0
    _run(settings, catalog, servable, slot, device, position, Database(database), is_stopping, fork_server)


def _catalog(settings: Settings, names: tuple[str, ...]) -> LiveCatalog:
    """The models folder. Invalid files are left out and logged. Raises ConfigError for an unknown name, and for no model."""
    catalog = LiveCatalog(settings.models_dir)
    models = catalog.current
    if not models.models:
        reason = next(iter(catalog.problems.values()), "add a YAML file, see README.md.")
        raise ConfigError(f"There is no model in {settings.models_dir}: {reason}")
    for name in names:
        if models.get(name) is None:
            raise ConfigError(f"There is no model {name!r}. Models: {', '.join(models.names())}.")
    return catalog


def _run(
    settings: Settings,
    catalog: LiveCatalog,
    servable: ServableModels,
    slot: str,
    device: Device,
    position: int,
    database: Database,
    is_stopping: threading.Event,
    fork_server: ForkServer,
) -> None:
    """Build the parts and run them; `position` is that of the device among those of the worker.

    The row of the launcher is kept if no engine starts, since it has the reason.
    """
    identity = launcher_identity(settings.state_dir, device.name)
    link = LinkServer(socket_directory(settings.state_dir) / f"l-{slot}.sock")
    reports = EngineReports(device.name, tolerated_exits=settings.line_attempts)
    demand = DemandReader(database, identity.id, settings.silence_seconds, link.wake)
    callers = FailedCallers(settings, database, demand)
    logs = private_directory(settings.state_dir / "logs")
    engines = Engines(settings, logs, device.name, reports)
    worker = f"{identity.host}/{device.name}"
    engines.crash_log = CrashLog(database.engine, worker, engines.on_crash_count)
    control = ResidencyControl(
        identity.id,
        servable,
        engines,
        ResidencyPolicy(_limits(settings)),
        link,
        reports,
        demand,
        lanes=settings.batch_lanes,
        on_load=lambda model, seconds: demand.write(record_load(model, identity.host, device.name, seconds)),
        on_failure=callers.fail,
    )
    consumers = ConsumerProcesses(settings, link, slot, logs, device, fork_server)
    activity = ActivityReporter(identity.id, reports, demand.write)
    signs = SignsOfLife(settings.state_dir, Role.WORKER, device.name)
    launcher = WorkerLauncher(settings, link, control, engines, consumers, activity, signs)
    budget_bytes = None if servable.device_bytes == UNLIMITED else servable.device_bytes
    status = with_device(reports.status, device, budget_bytes)
    heartbeat = WorkerHeartbeat(identity, database, status, seconds=settings.heartbeat_seconds)
    reports.on_change = heartbeat.wake
    _serve_metrics(settings, position, device, status, consumers, engines, link)
    on_hangup(catalog.refresh_soon)

    def files_changed() -> None:
        servable.files_changed()
        link.wake()

    def on_ready() -> None:
        reports.polled_seconds = lambda: None if demand.looked_at is None else time.monotonic() - demand.looked_at
        heartbeat.report()
        callers.start()

    _follow_signals(is_stopping, link)
    engines.crash_log.start()
    catalog.start(files_changed)
    demand.start()
    heartbeat.start()
    try:
        launcher.run(is_stopping.is_set, on_ready)
    except MillraceError:
        heartbeat.close(is_row_kept=True)
        raise
    heartbeat.close()


def _follow_signals(is_stopping: threading.Event, link: LinkServer) -> None:
    """Let signals wake the launcher's loop, which waits longer while nothing happens."""

    def stop(*_: object) -> None:
        is_stopping.set()
        link.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGCHLD, lambda *_: link.wake())


def _serve_metrics(
    settings: Settings,
    position: int,
    device: Device,
    status: Callable[[], Status],
    consumers: ConsumerProcesses,
    engines: Engines,
    link: LinkServer,
) -> None:
    """Serve the metrics of this device, if the settings name a port."""
    if settings.metrics_port is None:
        return
    from workers.launcher.metrics import LauncherMetrics  # prometheus_client, only where it is used

    sockets = [snapshot_socket(link.path, kind) for kind in KINDS]
    metrics = LauncherMetrics(device, status, lambda: _processes(consumers, engines), sockets)
    open_metrics_server(settings, metrics.format, offset=position)


def _processes(consumers: ConsumerProcesses, engines: Engines) -> Iterator[OwnProcess]:
    """The launcher and its children. Callable from any thread."""
    yield OwnProcess("launcher", os.getpid())
    yield from (OwnProcess(kind, pid) for kind, pid in consumers.pids().items())
    yield from (OwnProcess("engine", pid, model) for model, pid in engines.pids().items())


def _limits(settings: Settings) -> Limits:
    return Limits(
        min_residence_seconds=settings.residence_seconds,
        min_residence_loads=settings.residence_loads,
        chat_patience_seconds=settings.chat_patience_seconds,
        batch_patience_seconds=settings.batch_patience_seconds,
    )
