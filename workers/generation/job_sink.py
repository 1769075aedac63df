"""Sink of a live job: publishes its frames, and hands its end to the thread that waits for it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from core.queue.events import Event
from engine.types import Delta
from workers.generation.endpoints.base import EngineOutcome, StreamEncoder
from workers.generation.job_stream import JobStream


class GiveBack:
    """Outcome of a job whose lease is lost, or whose worker stops: nothing may be recorded."""


class JobSink(JobStream):
    """The sink of one job: publishes frames as deltas come in, and hands the end to the waiting thread."""

    def __init__(
        self, job_id: str, fence: int, encoder: StreamEncoder | None, publish: Callable[[Event], None]
    ) -> None:
        attempt = fence  # rises with every claim, also when an attempt was given back
        super().__init__(job_id, attempt, encoder, publish)
        self.outcomes: queue.SimpleQueue[EngineOutcome | GiveBack] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_given_back = False
        self.first_delta_at: float | None = None  # by the monotonic clock

    def on_delta(self, delta: Delta) -> None:
        """Called in the client's I/O thread."""
        if self.first_delta_at is None:
            self.first_delta_at = time.monotonic()
        with self._lock:
            if not self._is_given_back:
                self.send_delta(delta)

    def on_end(self, outcome: EngineOutcome) -> None:
        """Called in the client's I/O thread, once."""
        self.outcomes.put(outcome)

    def give_back(self) -> None:
        """Give the job back, unless a client may have read a part of its answer."""
        with self._lock:
            self._is_given_back = self._is_given_back or not self.has_sent_frames
        if self._is_given_back:
            self.outcomes.put(GiveBack())

    @property
    def has_sent_frames(self) -> bool:
        """May a client have read a part of the answer?"""
        return self._seq > 0
