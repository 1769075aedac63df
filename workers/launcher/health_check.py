"""Hearing: an engine that lives but does not answer is ended, so that the next one can be started.

Its loop may tick while nobody takes messages, or its process may stand still: what it is judged by is an answer to a
`Hello`, which crosses the intake, the loop and both sockets. Time is counted in looks, since a launcher that stood still
itself has heard nobody either.
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
_LONGEST_LOOK_SECONDS: Final = 1.0


@dataclass(slots=True)
class HealthCheck:
    """Of one engine. It has `LOAD_SECONDS` for its first answer, and `silence_seconds` for each one after it."""

    engine: SupervisedProcess
    client: EngineClient
    silence_seconds: float
    _child: Child | None = None
    _answered_at: float = 0.0
    _has_answered: bool = False
    _looked_at: float = 0.0
    _silent_seconds: float = 0.0

    def look(self, now: float) -> None:
        """End the engine when it has been silent for too long; `now` is the monotonic clock's."""
        since_look, self._looked_at = now - self._looked_at, now
        answered_at, child = self.client.answered_at, self.engine.child
        if child is not self._child:
            self._child, self._has_answered, self._silent_seconds = child, False, 0.0
        elif answered_at != self._answered_at:
            self._has_answered, self._silent_seconds = True, 0.0
        else:
            self._silent_seconds += min(since_look, _LONGEST_LOOK_SECONDS)
        self._answered_at = answered_at
        most = self.silence_seconds if self._has_answered else LOAD_SECONDS
        if child is not None and self._silent_seconds > most:
            log.error("engine_deaf", name=self.engine.name, seconds=round(self._silent_seconds, 1))
            self._silent_seconds = 0.0
            child.send(signal.SIGKILL)
