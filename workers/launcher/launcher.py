"""Launcher: the engines and consumers of one device, which it starts, supervises and stops in order.

It is one loop in the main thread, since children must be started there (see `core.process.child_process`), and nothing in it
waits: the database is read by the thread of `DemandReader`, and a load takes as many turns of the loop as it needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import structlog

from core.process.child_process import ChildFailed, StartInterrupted, notify_ready
from core.process.signs_of_life import Phase, SignsOfLife
from core.settings import Settings
from workers.launcher.consumer_processes import ConsumerProcesses
from workers.launcher.engines.activity import ActivityReporter
from workers.launcher.engines.engines import Engines
from workers.launcher.residency_control import ResidencyControl
from workers.residency.link import LinkServer

log = structlog.get_logger()

_GRACE_SECONDS: Final = 0.4
_CHECK_SECONDS: Final = 0.1
_STEADY_CHECK_SECONDS: Final = 0.5  # an end of a child, a message and a change of the models folder wake it
_REST_CHECK_SECONDS: Final = 2.0
_START_CHECK_SECONDS: Final = 0.02


class WorkerLauncher:
    """The loop of a worker. It returns once `is_stopping`, and raises a MillraceError if it cannot start."""

    def __init__(
        self,
        settings: Settings,
        link: LinkServer,
        control: ResidencyControl,
        engines: Engines,
        consumers: ConsumerProcesses,
        activity: ActivityReporter,
        signs: SignsOfLife,
    ) -> None:
        self._settings = settings
        self._link = link
        self._control = control
        self._engines = engines
        self._consumers = consumers
        self._activity = activity
        self._signs = signs

    def run(self, is_stopping: Callable[[], bool], on_ready: Callable[[], None]) -> None:
        """Run until `is_stopping`; `link.wake` ends a wait. `on_ready` is called once it serves."""
        try:
            self._start(is_stopping)
            on_ready()
            notify_ready()
            log.info("worker_ready", models=[engine.name for engine in self._engines.all()])
            while not is_stopping():
                self._link.wait(self._pause_seconds())
                self._turn(decides=True)
        except StartInterrupted:
            log.info("stopped_while_starting")
        finally:
            self._signs.give(Phase.STOPPING)
            self._consumers.stop(self._settings.drain_seconds + _GRACE_SECONDS)
            self._engines.stop(_GRACE_SECONDS, time.monotonic())

    def _start(self, is_stopping: Callable[[], bool]) -> None:
        self._control.load_eager(time.monotonic())
        self._consumers.start()
        while not (self._consumers.are_ready and self._control.are_eager_served(self._consumers)):
            if is_stopping():
                raise StartInterrupted
            self._link.wait(_START_CHECK_SECONDS)
            self._turn(decides=False)
            if self._control.is_hopeless:
                name, report = next(iter(self._control.failures.items()))
                raise ChildFailed(f"The model {name} did not load. {report}")

    def _pause_seconds(self) -> float:
        """The longest wait: a while when nothing is asked of a worker whose children all run, and no model comes or goes."""
        engines = self._engines.all()
        if not (self._consumers.are_running and all(engine.is_steady for engine in engines)):
            return _CHECK_SECONDS
        is_used = any(engine.is_used for engine in engines) or self._control.has_demand or not self._activity.is_settled
        return _STEADY_CHECK_SECONDS if is_used else _REST_CHECK_SECONDS

    def _turn(self, *, decides: bool) -> None:
        now = time.monotonic()
        self._signs.give(Phase.READY if decides else Phase.STARTING, problem=self._consumers.problem(now))
        self._consumers.check(now)
        self._control.advance(self._consumers, now, decides=decides)
        self._activity.advance(self._engines.all(), now)
