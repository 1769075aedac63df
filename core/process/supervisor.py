"""Supervised process: a command that is restarted when it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from core.process.child_process import Child
from core.process.fork_server import ForkServer

log = structlog.get_logger()

_LONGEST_PAUSE_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0


@dataclass(slots=True)
class SupervisedProcess:
    """Restarts a command; each quick exit doubles the pause before the next start. Start it from the main thread (see
    `core.process.child_process`).

    The first `tolerated_exits` exits in a row get the first pause. `on_exit` is called with each exit code;
    `set_crash_count` corrects the number of exits that count.
    """

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str]
    first_pause_seconds: float
    tolerated_exits: int = 1
    on_exit: Callable[[int], None] = lambda _: None
    fork_server: ForkServer | None = None
    child: Child | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    exited_at: float = 0.0
    num_exits: int = 0
    is_degraded: bool = False

    def start(self) -> Child:
        """Start the command."""
        environment = {**os.environ, **self.environment}
        self.child = Child(self.name, self.command, self.log, env=environment, fork_server=self.fork_server)
        self.started_at = time.monotonic()
        return self.child

    def restart_if_exited(self, now: float) -> None:
        """Restart the command when it has ended and its pause is over."""
        exit_code = None if self.child is None else self.child.exit_code()
        if self.child is not None and exit_code is not None:
            log.warning("child_exited", name=self.name, exit_code=exit_code, log=str(self.log))
            self.child.stop(signal.SIGKILL, 0)
            self.child = None
            self.exited_at = now
            self.num_exits = 1 if now - self.started_at > _STEADY_SECONDS else self.num_exits + 1
            self.restart_at = now + self.pause_seconds()
            self.on_exit(exit_code)
        elif self.child is None and now >= self.restart_at:
            self.start()

    def set_crash_count(self, num_exits: int, *, is_degraded: bool) -> None:
        """Set the number of unexplained exits; with `is_degraded`, every pause is the longest. Callable from any thread."""
        self.num_exits, self.is_degraded = num_exits, is_degraded
        self.restart_at = self.exited_at + self.pause_seconds()

    def pause_seconds(self) -> float:
        """Return the pause between the last exit and the next start."""
        if self.is_degraded:
            return _LONGEST_PAUSE_SECONDS
        doublings = min(max(0, self.num_exits - self.tolerated_exits), 16)
        return min(self.first_pause_seconds * 2.0**doublings, _LONGEST_PAUSE_SECONDS)

    def stop(self, timeout_seconds: float) -> None:
        """Send SIGTERM, and SIGKILL to its group after the timeout."""
        if self.child is not None:
            self.child.stop(signal.SIGTERM, timeout_seconds)
            self.child = None
