"""What one job asks of an engine: a request or several, whose answers come back as one.

The answers of the second request are numbered on from those of the first, and so on; the end is handed on when all have
ended. One that fails, is stopped or is lost takes the others with it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from engine.process.client import EngineClient, EngineLost
from engine.types import Choice, Delta, EmbedRequest, Failed, Finished, FinishReason, Usage
from workers.generation.endpoints.base import EngineOutcome, EngineRequest

_CANCELLED: Final = "cancelled"


class Sink(Protocol):
    """Where a job's outputs go; called in the client's I/O thread."""

    def on_delta(self, delta: Delta) -> None:
        """More text; only for streams."""

    def on_end(self, outcome: EngineOutcome) -> None:
        """The end, once."""


class EngineCall:
    """The requests of one job, from `begin` to the end its sink is told."""

    def __init__(self, engine: EngineClient, asks: Sequence[EngineRequest], sink: Sink) -> None:
        self._engine = engine
        self._asks = asks
        self._sink = sink
        self._lock = threading.Lock()
        self._ends: dict[int, EngineOutcome] = {}
        self._bad: EngineOutcome | None = None

    def begin(self) -> None:
        """Submit all of them."""
        for number, ask in enumerate(self._asks):
            part = _Part(self, number)
            if isinstance(ask, EmbedRequest):
                self._engine.embed(ask, part)
            else:
                self._engine.submit(ask, part)
        if self._bad is not None:
            self.cancel()  # what was submitted after one had already failed

    def cancel(self) -> None:
        """Stop them; the sink is still told an end, once."""
        for ask in self._asks:
            self._engine.cancel(ask.id)

    def watch(self) -> None:
        """Stream them from here on, where what is asked for has a stream."""
        for ask in self._asks:
            if not isinstance(ask, EmbedRequest):
                self._engine.stream(ask.id)

    def more(self, number: int, delta: Delta) -> None:
        """More of the request `number`."""
        if number:
            index = self._first_index(number) + delta.index
            delta = msgspec.structs.replace(delta, request_id=self._asks[0].id, index=index)
        self._sink.on_delta(delta)

    def end(self, number: int, outcome: EngineOutcome) -> None:
        """The request `number` has ended."""
        if isinstance(outcome, Failed) and outcome.code == _CANCELLED:
            outcome = _cancelled(outcome.request_id)
        with self._lock:
            self._ends[number] = outcome
            is_first_bad = self._bad is None and _is_bad(outcome)
            if is_first_bad or (isinstance(self._bad, EngineLost) and _was_running(outcome)):
                self._bad = outcome
            is_over = len(self._ends) == len(self._asks)
        if is_over:
            self._sink.on_end(self._bad or self._joined())
        elif is_first_bad:
            self.cancel()

    def _joined(self) -> EngineOutcome:
        if len(self._asks) == 1:
            return self._ends[0]
        choices: list[Choice] = []
        usages: list[Usage] = []
        for number in range(len(self._asks)):
            finished = self._ends[number]
            assert isinstance(finished, Finished), "only what generates is asked in parts"
            first = self._first_index(number)
            choices += [msgspec.structs.replace(each, index=first + each.index) for each in finished.choices]
            usages.append(finished.usage)
        return Finished(request_id=self._asks[0].id, choices=choices, usage=_sum(usages))

    def _first_index(self, number: int) -> int:
        return sum(0 if isinstance(ask, EmbedRequest) else ask.n for ask in self._asks[:number])


@dataclass(frozen=True, slots=True)
class _Part:
    """The sink of one request."""

    asking: EngineCall
    number: int

    def on_delta(self, delta: Delta) -> None:
        self.asking.more(self.number, delta)

    def on_end(self, outcome: EngineOutcome) -> None:
        self.asking.end(self.number, outcome)


def _is_bad(outcome: EngineOutcome) -> bool:
    if isinstance(outcome, Finished):
        return outcome.reason is FinishReason.CANCELLED
    return isinstance(outcome, Failed | EngineLost)


def _was_running(outcome: EngineOutcome) -> bool:
    """Was the engine at this part when it died?"""
    return isinstance(outcome, EngineLost) and outcome.was_running


def _cancelled(request_id: str) -> Finished:
    """However the engine says it, one that was stopped ends in one way."""
    choice = Choice(reason=FinishReason.CANCELLED, text="")
    return Finished(request_id=request_id, choices=[choice], usage=Usage(prompt_tokens=0, completion_tokens=0))


def _sum(usages: list[Usage]) -> Usage:
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )
