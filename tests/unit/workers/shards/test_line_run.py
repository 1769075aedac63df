"""A line that has ended is freed at once: the garbage collector of a consumer runs too rarely to free bodies and answers."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from engine.types import Choice, Delta, Finished, FinishReason, Request, TextPrompt, Usage
from workers.generation.endpoints.base import EngineOutcome, EngineRequest
from workers.shards.line_run import LineRun


class HeldEngine:
    """An engine client that drops the sink of a request that has ended, as the real one does."""

    def __init__(self) -> None:
        self.sinks: dict[str, Any] = {}

    def submit(self, request: Request, sink: Any) -> str:
        self.sinks[request.id] = sink
        return request.id

    def cancel(self, request_id: str) -> None: ...

    def stream(self, request_id: str) -> None: ...


def finished(request_id: str) -> Finished:
    choices = [Choice(reason=FinishReason.STOP, text="x")]
    return Finished(request_id=request_id, choices=choices, usage=Usage(prompt_tokens=1, completion_tokens=1))


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize("num_requests", [1, 2])
def test_a_line_that_has_ended_is_freed_without_the_garbage_collector(num_requests: int) -> None:
    engine, outcomes = HeldEngine(), list[EngineOutcome]()
    requests: list[EngineRequest] = [Request(id=f"{n}", prompt=TextPrompt(text="x")) for n in range(num_requests)]
    run = LineRun(engine, requests, outcomes.append)  # type: ignore[arg-type]
    run.begin()
    for request in requests:
        engine.sinks.pop(request.id).on_end(finished(request.id))
    freed = weakref.ref(run)
    del run
    assert len(outcomes) == 1
    assert freed() is None


def test_a_line_that_has_ended_takes_a_cancel_a_watch_and_a_late_delta() -> None:
    engine, outcomes = HeldEngine(), list[EngineOutcome]()
    requests: list[EngineRequest] = [Request(id=f"{n}", prompt=TextPrompt(text="x")) for n in range(2)]
    run = LineRun(engine, requests, outcomes.append)  # type: ignore[arg-type]
    run.begin()
    streamed: list[Delta] = []

    class Stream:
        send_delta = staticmethod(streamed.append)

    run.watch(Stream)  # type: ignore[arg-type]
    for number in range(2):
        engine.sinks[f"{number}"].on_delta(Delta(request_id=f"{number}", num_tokens=1, text="x"))
    for request in requests:
        engine.sinks[request.id].on_end(finished(request.id))
    for number in range(2):
        engine.sinks[f"{number}"].on_delta(Delta(request_id=f"{number}", num_tokens=1, text="late"))
    run.cancel()
    assert [delta.text for delta in streamed] == ["x", "x"]
    assert len(outcomes) == 1
