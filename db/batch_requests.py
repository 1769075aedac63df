"""Statements that show a batch's lines: a filtered page, one of them, and what all of them together tell."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Select, case, cast, func, literal, or_, select

from core.states import JobState
from db.tables import Batch, Job

_RECENT_LINES = 256
_UNANSWERED = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)
_COLUMNS = (
    Job.id, Job.custom_id, Job.line, Job.model, Job.state, Job.attempt, Job.prompt_tokens, Job.completion_tokens,
    Job.cached_tokens, Job.reasoning_tokens, Job.problem, Job.finished_at,
)  # fmt: skip


def _code() -> Any:  # Any: a SQL expression
    return cast(Job.problem, JSON)["code"].as_string()


def list_requests(
    batch_id: str, *, status: JobState | None, code: str | None, query: str | None, after_line: int, limit: int
) -> Any:  # Any: Select of the columns above
    """Lines in input order from behind `after_line`; `query` is part of a `custom_id`, whatever its case."""
    statement = select(*_COLUMNS).where(Job.batch_id == batch_id, Job.line > after_line)
    if status is not None:
        statement = statement.where(Job.state == status)
    if code is not None:
        # spelled out so that the index on lines without an answer is seen to fit
        statement = statement.where(or_(*(Job.state == state for state in _UNANSWERED)), _code() == code)
    if query is not None:
        statement = statement.where(Job.custom_id.icontains(query, autoescape=True))
    return statement.order_by(Job.line).limit(limit)


def find_request(batch_id: str, name: str) -> Select[Job]:
    """A line by its `custom_id`, else by its id."""
    return (
        select(Job)
        .where(Job.batch_id == batch_id, or_(Job.custom_id == name, Job.id == name))
        .order_by((Job.custom_id == name).desc())
        .limit(1)
    )


def recent_pace(batch_ids: list[str]) -> Any:  # Any: Select of five columns
    """Per batch, of its last lines: how many ended, over how many seconds up to now, their computed tokens; and now.

    Counted from its start or the last pause; of a long batch from the end of the oldest of those lines, which then only
    marks the beginning. A stall therefore shows at once.
    """
    begun_at = func.greatest(Batch.in_progress_at, Batch.resumed_at)
    recent = (
        select(Job.finished_at, (Job.prompt_tokens - Job.cached_tokens + Job.completion_tokens).label("tokens"))
        .where(Job.batch_id == Batch.id, Job.finished_at > begun_at, Job.shard_id.is_not(None))
        .order_by(Job.finish_xact.desc(), Job.line.desc())
        .limit(_RECENT_LINES)
        .correlate(Batch)
        .subquery("recent")
    )
    oldest, is_whole = func.min(recent.c.finished_at).over(), func.count().over() < _RECENT_LINES
    marked = (
        select(recent, case((is_whole, begun_at), else_=oldest).label("from_at")).correlate(Batch).lateral("marked")
    )
    return (
        select(
            Batch.id,
            func.count(),
            func.extract("epoch", func.now() - marked.c.from_at),
            func.sum(marked.c.tokens),
            func.now(),
        )
        .select_from(Batch)
        .join(marked, marked.c.finished_at > marked.c.from_at)
        .where(Batch.id.in_(batch_ids))
        .group_by(Batch.id, marked.c.from_at)
    )


def latencies(batch_id: str) -> Any:  # Any: Select of seven columns
    """Seconds that lines were with an engine: count, sum, p50, p90, p95, p99, max."""
    seconds = func.extract("epoch", Job.finished_at - Job.started_at)

    def percentile(share: float) -> Any:  # Any: a SQL expression
        return func.percentile_cont(literal(share)).within_group(seconds)

    return select(
        func.count(), func.sum(seconds), percentile(0.5), percentile(0.9), percentile(0.95), percentile(0.99),
        func.max(seconds),
    ).where(Job.batch_id == batch_id, Job.started_at.is_not(None), Job.finished_at.is_not(None))  # fmt: skip


def active_seconds(batch_id: str) -> Select[Any]:  # Any: a numeric
    """Time in which at least one line was with an engine; lines side by side count once."""
    before = func.max(Job.finished_at).over(order_by=(Job.started_at, Job.id), rows=(None, -1))
    spans = (
        select(Job.finished_at, func.greatest(Job.started_at, func.coalesce(before, Job.started_at)).label("from_at"))
        .where(Job.batch_id == batch_id, Job.started_at.is_not(None), Job.finished_at.is_not(None))
        .subquery()
    )
    new = func.greatest(func.extract("epoch", spans.c.finished_at - spans.c.from_at), 0)
    return select(func.coalesce(func.sum(new), 0))


def error_codes(batch_id: str, limit: int) -> Any:  # Any: Select of two columns
    """Why lines have no answer: code and how many, the most frequent first."""
    code = _code().label("code")
    return (
        select(code, func.count().label("lines"))
        .where(Job.batch_id == batch_id, or_(*(Job.state == state for state in _UNANSWERED)))
        .group_by(code)
        .order_by(func.count().desc(), code)
        .limit(limit)
    )


def engines(batch_id: str) -> Any:  # Any: Select of four columns
    """What computed the lines: model, hash of its file, engine build, and how many lines."""
    return (
        select(Job.model, Job.model_hash, Job.engine_build, func.count())
        .where(Job.batch_id == batch_id, Job.engine_build.is_not(None))
        .group_by(Job.model, Job.model_hash, Job.engine_build)
        .order_by(Job.model, Job.engine_build)
    )
