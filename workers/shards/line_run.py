"""One attempt at a line of a batch: its call of the engine, and the stream of those that follow it."""

from __future__ import annotations

import time
from collections.abc import Callable

from core.errors import Problem
from core.queue.events import EventKind
from engine.process.client import EngineClient
from engine.types import Delta, Embedded, Finished
from workers.generation.endpoints.base import EngineOutcome, EngineRequest
from workers.generation.engine_call import EngineCall
from workers.generation.job_stream import JobStream


class LineRun:
    """The `number`th attempt. The engine client's thread calls `on_delta` and `on_end`, the lane's thread everything else.

    `seconds` is the time from `begin` to the engine's outcome, None before it.
    """

    def __init__(
        self,
        engine: EngineClient,
        engine_requests: list[EngineRequest],
        ended: Callable[[EngineOutcome], None],
        *,
        number: int = 0,
    ) -> None:
        self.number = number
        self.seconds: float | None = None
        self._call = EngineCall(engine, engine_requests, self)
        self._ended = ended
        self._stream: JobStream | None = None
        self._outcome: EngineOutcome | None = None
        self._begun_at = time.monotonic()

    def begin(self) -> None:
        """Submit the line to the engine."""
        self._call.start()

    def cancel(self) -> None:
        """Stop the line; its outcome still arrives."""
        self._call.cancel()

    def watch(self, make_stream: Callable[[], JobStream]) -> None:
        """Publish what is generated so far, and the rest as it comes; repeated calls change nothing."""
        if self._stream is None:
            self._stream = make_stream()
            self._call.start_streaming()

    def publish_end(self, problem: Problem | None) -> None:
        """Publish how the line ended, after its row is stored."""
        if self._stream is None:
            return
        if problem is None and isinstance(self._outcome, Finished | Embedded):
            self._stream.send_done(self._outcome)
        else:
            self._stream.send_end(EventKind.FAILED, problem)

    def on_delta(self, delta: Delta) -> None:
        """Publish more text; deltas only come once the line is watched."""
        if self._stream is not None:
            self._stream.send_delta(delta)

    def on_end(self, outcome: EngineOutcome) -> None:
        """Keep the outcome, and pass it to the lane."""
        self._outcome = outcome
        self.seconds = time.monotonic() - self._begun_at
        self._ended(outcome)
