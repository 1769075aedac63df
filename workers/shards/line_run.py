"""One attempt at a line of a batch, streamed to clients that follow it; and the result that its row stores."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from core.errors import Problem
from core.queue.events import EventKind
from db.shards import LineResult
from engine.process.client import EngineClient, EngineLost
from engine.types import Delta, Embedded, Failed, Finished
from workers.generation.endpoints.base import (
    EndpointAdapter,
    EngineOutcome,
    EngineRequest,
    EngineResult,
    ResponseHeader,
)
from workers.generation.engine_call import EngineCall
from workers.generation.inference_span import end_inference
from workers.generation.job_stream import JobStream
from workers.generation.problems import engine_crash
from workers.shards.shard_progress import EndedLine

if TYPE_CHECKING:
    from core.telemetry.sdk import Span


class LineRun:
    """The `number`th attempt. The engine client's thread calls `on_delta` and `on_end`, the lane's thread everything else.

    `seconds` is the time from `begin` to the engine's `outcome`; both are None before it. `inference` is its span, if it has one.
    """

    def __init__(
        self,
        engine: EngineClient,
        engine_requests: list[EngineRequest],
        ended: Callable[[EngineOutcome], None],
        *,
        number: int = 0,
        inference: Span | None = None,
    ) -> None:
        self.number = number
        self._inference = inference
        self.seconds: float | None = None
        self._call = EngineCall(engine, engine_requests, self)
        self._ended = ended
        self._stream: JobStream | None = None
        self.outcome: EngineOutcome | None = None
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
        if problem is None and isinstance(self.outcome, Finished | Embedded):
            self._stream.send_done(self.outcome)
        else:
            self._stream.send_end(EventKind.FAILED, problem)

    def on_delta(self, delta: Delta) -> None:
        """Publish more text; deltas only come once the line is watched."""
        if self._stream is not None:
            self._stream.send_delta(delta)

    def on_end(self, outcome: EngineOutcome) -> None:
        """Keep the outcome, and pass it to the lane."""
        self.outcome = outcome
        self.seconds = time.monotonic() - self._begun_at
        if self._inference is not None:
            end_inference(self._inference, outcome)
        self._ended(outcome)


def line_result(ended: EndedLine, header: ResponseHeader, seconds: float | None) -> LineResult:
    """The answer or the problem of a line; `seconds` is its time with the engine, None for a line that did not run."""
    job_id, outcome = ended.line.id, ended.outcome
    if isinstance(outcome, EngineLost):
        return LineResult(job_id=job_id, problem=engine_crash().to_json(), seconds=seconds)
    assert ended.line.parsed is not None, "it was parsed when it began"
    adapter = ended.line.parsed.adapter
    if isinstance(outcome, Failed):
        return LineResult(job_id=job_id, problem=adapter.to_problem(outcome).to_json(), seconds=seconds)
    return _generated(adapter, header, _as_cached(outcome) if ended.is_duplicate else outcome, seconds)


def _generated(
    adapter: EndpointAdapter, header: ResponseHeader, outcome: EngineResult, seconds: float | None
) -> LineResult:
    """The answer, or the reason why it is rejected; its tokens count either way."""
    problem = adapter.reject_reason(outcome)
    answer = adapter.encode_response(header, outcome)
    return LineResult(
        job_id=header.job_id,
        answer=answer if problem is None else None,
        problem=None if problem is None else problem.to_json(),
        prompt_tokens=outcome.usage.prompt_tokens,
        completion_tokens=outcome.usage.completion_tokens,
        cached_tokens=outcome.usage.cached_tokens,
        reasoning_tokens=outcome.usage.reasoning_tokens,
        seconds=seconds,
    )


def _as_cached(outcome: EngineResult) -> EngineResult:
    """The outcome of a duplicate: nothing of its prompt was computed."""
    usage = msgspec.structs.replace(outcome.usage, cached_tokens=outcome.usage.prompt_tokens)
    return msgspec.structs.replace(outcome, usage=usage)
