"""Telling whoever follows a job how its answer grows, and how it ended. Knows frames and events; best effort, as events are."""

from __future__ import annotations

from collections.abc import Callable

from core.errors import Problem
from core.queue.events import Event, EventKind
from engine.types import Delta, Finished
from workers.generation.endpoints.base import EngineResult, StreamEncoder


class JobStream:
    """Of one attempt at a job, whose number no other attempt has, so that two are never spliced. No `frames`: only the end."""

    def __init__(
        self, job_id: str, attempt: int, frames: StreamEncoder | None, publish: Callable[[Event], None]
    ) -> None:
        self._job_id = job_id
        self._attempt = attempt
        self._frames = frames
        self._publish = publish
        self._seq = 0

    def more(self, delta: Delta) -> None:
        """Some more of an answer."""
        if self._frames is not None:
            self._send(self._frames.more(delta))

    def close(self, outcome: EngineResult) -> None:
        """The last frames, and that the row holds the answer."""
        if self._frames is not None and isinstance(outcome, Finished):
            self._send(self._frames.last(outcome))
        self.end(EventKind.DONE)

    def end(self, kind: EventKind, problem: Problem | None = None) -> None:
        """How the job ended, after its row says so."""
        self._publish(Event(job=self._job_id, attempt=self._attempt, seq=self._seq, kind=kind, problem=problem))

    def _send(self, frames: list[bytes]) -> None:
        event = Event(job=self._job_id, attempt=self._attempt, seq=self._seq, kind=EventKind.FRAMES, frames=frames)
        self._seq += len(frames)
        self._publish(event)
