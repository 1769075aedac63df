"""Health check: kills an engine that runs but does not answer, so that its supervisor starts another one.

The loop may tick while no thread takes messages, and the process may be frozen. So the proof of health is the answer to a
`Hello`, which passes the input processor, the loop and both sockets. Silence is counted in checks, since a launcher that was
frozen itself has received nothing either.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

import structlog

from core.process.child_process import Child
from core.process.supervisor import SupervisedProcess
from engine.process.client import EngineClient

log = structlog.get_logger()

LOAD_SECONDS: Final = 600.0
_MAX_INTERVAL_SECONDS: Final = 2.0  # as long as the launcher waits at rest


@dataclass(slots=True)
class HealthCheck:
    """The check of one engine. It has `LOAD_SECONDS` for its first answer, and `silence_seconds` for each one after it."""

    engine: SupervisedProcess
    client: EngineClient
    silence_seconds: float
    _child: Child | None = None
    _answered_at: float = 0.0
    has_answered: bool = False  # the engine that runs now
    _checked_at: float = 0.0
    _silent_seconds: float = 0.0

    def check(self, now: float) -> None:
        """Kill the engine if it has been silent for too long; `now` is the monotonic clock's."""
        interval, self._checked_at = now - self._checked_at, now
        answered_at, child = self.client.answered_at, self.engine.child
        if child is not self._child:
            self._child, self.has_answered, self._silent_seconds = child, False, 0.0
        elif answered_at != self._answered_at:
            self.has_answered, self._silent_seconds = True, 0.0
        else:
            self._silent_seconds += min(interval, _MAX_INTERVAL_SECONDS)
        self._answered_at = answered_at
        limit = self.silence_seconds if self.has_answered else LOAD_SECONDS
        if child is not None and self._silent_seconds > limit:
            log.error("engine_unresponsive", name=self.engine.name, seconds=round(self._silent_seconds, 1))
            self._silent_seconds = 0.0
            child.send(signal.SIGKILL)
