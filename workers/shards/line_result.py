"""From a line that has ended to the result that its row stores."""

from __future__ import annotations

import msgspec

from db.shards import LineResult
from engine.process.client import EngineLost
from engine.types import Failed
from workers.generation.endpoints.base import EndpointAdapter, EngineResult, ResponseHeader
from workers.generation.problems import engine_crash
from workers.shards.shard_progress import EndedLine


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
