"""Fleet: the workers of several devices, `python -m workers --device cuda:0,cuda:1`: a launcher for each, as its child.

A single device needs no fleet: its launcher runs in this process. Launchers get the devices as the fleet, or `serve`, has
measured them before any engine was started: what a restarted launcher would find free lacks the memory of other engines.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from core.devices.budget import check_device_memory
from core.devices.inventory import Device, read_inventory
from core.devices.selection import choose_devices
from core.errors import MillraceError
from core.logs import configure_logging
from core.process.child_process import STDERR, ChildFailed, StartInterrupted, exit_with, notify_ready
from core.process.fork_server import ForkServer
from core.process.hangup import on_hangup
from core.process.signal_wakeup import woken_by_signals
from core.process.signs_of_life import Phase, Role, SignsOfLife
from core.process.supervisor import SupervisedProcess
from core.settings import Settings, load_settings
from workers.launcher.device_lock import lock_device
from workers.launcher.run import run_launcher

log = structlog.get_logger()

_READY_SECONDS: Final = 600.0
_CHECK_SECONDS: Final = 0.1
_STEADY_CHECK_SECONDS: Final = 2.0  # the end of a launcher wakes it
_GRACE_SECONDS: Final = 1.5  # more than a launcher takes for its own children


class Fleet:
    """The launchers of several devices."""

    def __init__(self, settings: Settings, devices: Sequence[Device], models: str, fork_server: ForkServer) -> None:
        self._drain_seconds = settings.drain_seconds
        self._signs = SignsOfLife(settings.state_dir, Role.WORKER, ",".join(device.name for device in devices))
        command = [sys.executable, "-P", "-m", "workers", "--models", models]
        command += ["--measured", msgspec.json.encode(devices).decode(), "--only"]
        self._launchers = [
            SupervisedProcess(
                f"worker of {device.name}",
                [*command, device.name],
                STDERR,
                {},
                settings.engine_restart_seconds,
                fork_server=fork_server,
            )
            for device in devices
        ]

    def run(self, is_stopping: threading.Event) -> None:
        """Run until `is_stopping` is set. This thread starts the launchers, so it must be the main one."""
        try:
            for launcher in self._launchers:
                launcher.start()
            self._wait(is_stopping.is_set)
            notify_ready()
            on_hangup(self._hang_up)
            with woken_by_signals() as wait:
                while not is_stopping.is_set():
                    is_steady = all(launcher.child is not None for launcher in self._launchers)
                    wait(_STEADY_CHECK_SECONDS if is_steady else _CHECK_SECONDS)
                    self._signs.give()
                    for launcher in self._launchers:
                        launcher.restart_if_exited(time.monotonic())
        except StartInterrupted:
            log.info("stopped_while_starting")
        finally:
            self._stop()

    def _wait(self, is_stopping: Callable[[], bool]) -> None:
        """Wait for all launchers. One that is killed is started again; one that exits with an error ends the worker."""
        deadline, waiting = time.monotonic() + _READY_SECONDS, list(self._launchers)
        while waiting:
            self._signs.give(Phase.STARTING)
            for launcher in list(waiting):
                child = launcher.child
                exit_code = None if child is None else child.exit_code()
                if child is not None and child.ready_status(0) is not None:
                    waiting.remove(launcher)
                elif (exit_code or 0) > 0 or time.monotonic() > deadline:
                    raise ChildFailed(f"The {launcher.name} did not start. Its own message is above.")
                else:
                    launcher.restart_if_exited(time.monotonic())
            if is_stopping():
                raise StartInterrupted
            time.sleep(_CHECK_SECONDS / 2)

    def _hang_up(self) -> None:
        """Let all launchers look at the models folder now."""
        for launcher in self._launchers:
            if launcher.child is not None:
                launcher.child.send(signal.SIGHUP)

    def _stop(self) -> None:
        """Stop all at the same time: each of them drains."""
        self._signs.give(Phase.STOPPING)
        running = [launcher.child for launcher in self._launchers if launcher.child is not None]
        for child in running:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + self._drain_seconds + _GRACE_SECONDS
        for child in running:
            child.wait(max(0.0, deadline - time.monotonic()))
            child.stop(signal.SIGKILL, 0)


def main() -> None:
    """Run the launchers of all chosen devices until they are stopped; with `--only`, that of one of them."""
    parser = argparse.ArgumentParser(
        description="A Millrace worker: the engines of each of its devices, and what feeds them."
    )
    parser.add_argument("--device", action="append", default=[], help="cpu, cuda:0, cpu@0-15, …; default: all GPUs")
    parser.add_argument("--cpus", action="append", default=[], help="CPUs of the device: 0-15, or node0")
    parser.add_argument("--models", default="", help="names, separated by commas; default: all in the models folder")
    parser.add_argument(
        "--measured", help=argparse.SUPPRESS
    )  # devices in JSON, from the process that has measured them
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    fork_server = ForkServer("workers.consumers.main")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    on_hangup(lambda: None)  # until the launchers follow the models folder
    fork_server.start()  # before any thread, and before this process writes to the memory that they share
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        if arguments.measured is None:
            inventory = read_inventory()
            devices = choose_devices(arguments.device, inventory, cpus=arguments.cpus)
            check_device_memory(settings, devices, inventory)
        else:
            devices = msgspec.json.decode(arguments.measured, type=tuple[Device, ...])
        if len(devices) > 1 and arguments.only is None:
            Fleet(settings, devices, arguments.models, fork_server).run(stopping)
            return
        own = next(device for device in devices if arguments.only in (None, device.name))
        if own.cpus is not None:
            os.sched_setaffinity(0, own.cpus)  # before any thread starts: they and all children inherit it
        with lock_device(settings.state_dir, own.name):
            run_launcher(settings, arguments.models, own, devices, stopping, fork_server)
    except MillraceError as error:
        exit_with("worker", error)
