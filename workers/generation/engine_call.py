"""Engine call: runs the engine requests of one job, one or several, and joins their answers into one.

The answers of the second request are numbered after those of the first, and so on; the end is passed on when all requests have
ended. If one request fails, is cancelled or is lost, the others are cancelled.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from engine.process.client import EngineClient, EngineLost
from engine.types import Choice, Delta, EmbedRequest, Failed, Finished, FinishReason, Request, Usage
from workers.generation.endpoints.base import EngineOutcome, EngineRequest

_CANCELLED: Final = "cancelled"


class OutcomeSink(Protocol):
    """Receives the outputs of a job, in the I/O thread of the engine client."""

    def on_delta(self, delta: Delta) -> None:
        """More text; only for streams."""

    def on_end(self, outcome: EngineOutcome) -> None:
        """The end, once."""


class EngineCall:
    """The engine requests of one job, from `start` until its sink receives the end.

    A call that has ended refers to its sink no more: the sink may be its owner, and such a cycle, with the body and the answer
    of a line in it, would stay in memory until the next garbage collection.
    """

    def __init__(self, engine: EngineClient, requests: Sequence[EngineRequest], sink: OutcomeSink) -> None:
        self._engine = engine
        self._requests = requests
        self._sink: OutcomeSink | None = sink  # None once the call has ended
        self._lock = threading.Lock()
        self._ids: list[str] = []  # of the submitted requests; another call for the same job has other ids
        self._is_cancelled = False
        self._outcomes: dict[int, EngineOutcome] = {}
        self._failure: EngineOutcome | None = None

    def start(self) -> None:
        """Submit all requests."""
        for number, request in enumerate(self._requests):
            part = _PartSink(self, number)
            if isinstance(request, EmbedRequest):
                self._ids.append(self._engine.embed(request, part))
            else:
                self._ids.append(self._engine.submit(request, part))
        if self._is_cancelled:
            self.cancel()  # those that were submitted after one had already failed

    def cancel(self) -> None:
        """Stop all requests; the sink still receives an end, once."""
        self._is_cancelled = True
        for request_id in list(self._ids):
            self._engine.cancel(request_id)

    def start_streaming(self) -> None:
        """Stream from here on. The first delta holds everything generated so far; embeddings have no stream."""
        for request, request_id in zip(self._requests, list(self._ids), strict=False):
            if not isinstance(request, EmbedRequest):
                self._engine.stream(request_id)

    def part_delta(self, number: int, delta: Delta) -> None:
        """Pass on more of request `number`; nothing once the call has ended."""
        if (sink := self._sink) is None:
            return
        if number:
            index = self._first_index(number) + delta.index
            delta = msgspec.structs.replace(delta, request_id=self._requests[0].id, index=index)
        sink.on_delta(delta)

    def part_end(self, number: int, outcome: EngineOutcome) -> None:
        """Keep the end of request `number`; the last one ends the call.

        A request that was running when the engine ended outranks one that was only waiting there.
        """
        if isinstance(outcome, Failed) and outcome.code == _CANCELLED:
            outcome = _cancelled(outcome.request_id)
        if len(self._requests) == 1:
            self._end(outcome)
            return
        with self._lock:
            self._outcomes[number] = outcome
            is_first_failure = self._failure is None and _is_failure(outcome)
            if is_first_failure or (isinstance(self._failure, EngineLost) and _was_running(outcome)):
                self._failure = outcome
            is_over = len(self._outcomes) == len(self._requests)
        if is_over:
            self._end(self._failure or self._joined())
        elif is_first_failure:
            self.cancel()

    def _end(self, outcome: EngineOutcome) -> None:
        sink, self._sink = self._sink, None
        assert sink is not None, "each request ends once"
        sink.on_end(outcome)

    def _joined(self) -> EngineOutcome:
        choices: list[Choice] = []
        usages: list[Usage] = []
        first_tokens: list[float] = []
        for number in range(len(self._requests)):
            finished = self._outcomes[number]
            assert isinstance(finished, Finished), "only requests that generate text come in several parts"
            first = self._first_index(number)
            choices += [msgspec.structs.replace(each, index=first + each.index) for each in finished.choices]
            usages.append(finished.usage)
            if finished.first_token_seconds is not None:
                first_tokens.append(finished.first_token_seconds)
        return Finished(
            request_id=self._requests[0].id,
            choices=choices,
            usage=_sum(usages),
            first_token_seconds=min(first_tokens, default=None),
        )

    def _first_index(self, number: int) -> int:
        return sum(request.n for request in self._requests[:number] if isinstance(request, Request))


@dataclass(frozen=True, slots=True)
class _PartSink:
    """The sink of one request."""

    call: EngineCall
    number: int

    def on_delta(self, delta: Delta) -> None:
        self.call.part_delta(self.number, delta)

    def on_end(self, outcome: EngineOutcome) -> None:
        self.call.part_end(self.number, outcome)


def _is_failure(outcome: EngineOutcome) -> bool:
    if isinstance(outcome, Finished):
        return outcome.reason is FinishReason.CANCELLED
    return isinstance(outcome, Failed | EngineLost)


def _was_running(outcome: EngineOutcome) -> bool:
    """Was the engine running this request when it ended?"""
    return isinstance(outcome, EngineLost) and outcome.was_running


def _cancelled(request_id: str) -> Finished:
    """Embeddings report a cancel as `Failed`, text as `Finished`: both become the latter."""
    choice = Choice(reason=FinishReason.CANCELLED, text="")
    return Finished(request_id=request_id, choices=[choice], usage=Usage(prompt_tokens=0, completion_tokens=0))


def _sum(usages: list[Usage]) -> Usage:
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )
