"""A line of a batch from its submission until its result is written. Knows its exchange and who follows it."""

from __future__ import annotations

import time
from collections.abc import Callable

from core.errors import Problem
from core.queue.events import EventKind
from engine.process.client import EngineClient, EngineLost
from engine.types import Delta, Failed
from workers.generation.endpoints.base import EndpointAdapter, EngineOutcome, EngineRequest
from workers.generation.engine_call import EngineCall
from workers.generation.job_stream import JobStream


class LineRun:
    """One attempt, the `number`th. `ended` is called in the engine client's thread, once; everything else is the lane's."""

    def __init__(
        self,
        exchange: EndpointAdapter,
        engine: EngineClient,
        engine_requests: list[EngineRequest],
        ended: Callable[[EngineOutcome], None],
        *,
        number: int = 0,
    ) -> None:
        self.exchange = exchange
        self.number = number
        self._asking = EngineCall(engine, engine_requests, self)
        self._ended = ended
        self._teller: JobStream | None = None
        self._outcome: EngineOutcome | None = None
        self._begun_at = time.monotonic()
        self.seconds: float | None = None

    def begin(self) -> None:
        """Ask the engine."""
        self._asking.begin()

    def cancel(self) -> None:
        """Stop it; its end is told all the same."""
        self._asking.cancel()

    def watch(self, make_teller: Callable[[], JobStream]) -> None:
        """Somebody follows it: tell what there is by now, and the rest as it comes. Once is enough."""
        if self._teller is None:
            self._teller = make_teller()
            self._asking.watch()

    def finish(self, outcome: EngineOutcome) -> None:
        """It will not run again."""
        self._outcome = outcome
        self.seconds = time.monotonic() - self._begun_at

    def tell_end(self, problem: Problem | None) -> None:
        """Its row says how it ended; those who follow it may know."""
        if self._teller is None:
            return
        if problem is not None or self._outcome is None or isinstance(self._outcome, Failed | EngineLost):
            self._teller.end(EventKind.FAILED, problem)
        else:
            self._teller.close(self._outcome)

    def on_delta(self, delta: Delta) -> None:
        """See `workers.generation.engine_call.Sink`; only comes where somebody follows."""
        if self._teller is not None:
            self._teller.more(delta)

    def on_end(self, outcome: EngineOutcome) -> None:
        """See `workers.generation.engine_call.Sink`."""
        self._ended(outcome)
