"""A command that is kept running. Knows when to start it again; what it does is its own business."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from core.children import Child

log = structlog.get_logger()

_LONGEST_PAUSE_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0


@dataclass(slots=True)
class Supervised:
    """Each quick death doubles the pause before the next start. Start it from the main thread (see `core.children`)."""

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str]
    first_pause_seconds: float
    child: Child | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    num_deaths: int = 0
    on_death: Callable[[Child], None] = field(default=lambda _: None)

    def start(self) -> Child:
        """Start it now."""
        self.child = Child(self.name, self.command, self.log, env={**os.environ, **self.environment})
        self.started_at = time.monotonic()
        return self.child

    def tend(self, now: float) -> None:
        """Start it again when it has died and its pause is over."""
        if self.child is not None and self.child.exit_code() is not None:
            log.warning("child_died", name=self.name, exit_code=self.child.exit_code(), log=str(self.log))
            self.on_death(self.child)
            self.child.stop(signal.SIGKILL, 0)
            self.child = None
            self.num_deaths = 1 if now - self.started_at > _STEADY_SECONDS else self.num_deaths + 1
            pause = self.first_pause_seconds * 2 ** (self.num_deaths - 1)
            self.restart_at = now + min(pause, _LONGEST_PAUSE_SECONDS)
        elif self.child is None and now >= self.restart_at:
            self.start()

    def stop(self, timeout_seconds: float) -> None:
        """SIGTERM, and SIGKILL to its group when it takes longer."""
        if self.child is not None:
            self.child.stop(signal.SIGTERM, timeout_seconds)
            self.child = None
