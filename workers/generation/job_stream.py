"""Job stream: publishes the chunks of a running job and its end as events. Best effort, as events are."""

from __future__ import annotations

from collections.abc import Callable

from core.errors import Problem
from core.queue.events import Event, EventKind
from engine.types import Delta, Finished
from workers.generation.endpoints.base import EngineResult, StreamEncoder


class JobStream:
    """The events of one attempt at a job.

    No two attempts have the same number, so a reader never joins parts of two. Without an encoder only the end is published.
    """

    def __init__(
        self, job_id: str, attempt: int, encoder: StreamEncoder | None, publish: Callable[[Event], None]
    ) -> None:
        self._job_id = job_id
        self._attempt = attempt
        self._encoder = encoder
        self._publish = publish
        self._seq = 0

    def send_delta(self, delta: Delta) -> None:
        """Publish more of an answer."""
        if self._encoder is not None:
            self._send_frames(self._encoder.encode_delta(delta))

    def send_done(self, result: EngineResult) -> None:
        """Publish the last chunks, and that the row holds the answer."""
        if self._encoder is not None and isinstance(result, Finished):
            self._send_frames(self._encoder.encode_end(result))
        self.send_end(EventKind.DONE)

    def send_end(self, kind: EventKind, problem: Problem | None = None) -> None:
        """Publish how the job ended; call it after the commit that writes it to the row."""
        self._publish(Event(job=self._job_id, attempt=self._attempt, seq=self._seq, kind=kind, problem=problem))

    def _send_frames(self, frames: list[bytes]) -> None:
        event = Event(job=self._job_id, attempt=self._attempt, seq=self._seq, kind=EventKind.FRAMES, frames=frames)
        self._seq += len(frames)
        self._publish(event)
