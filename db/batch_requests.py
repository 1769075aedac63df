"""Statements that show a batch's lines: a filtered page, one of them, and statistics over all."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    JSON,
    ColumnElement,
    Float,
    Integer,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.orm import InstrumentedAttribute

from core.states import JobState, ShardState
from db.jobs import JOB, JobRow
from db.query import Query, columns_of, total
from db.tables import Batch, Job, Shard

_RECENT_LINES: Final = 256
_UNANSWERED: Final = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


class LineSummary(NamedTuple):
    """A line without its body and answer."""

    id: str
    custom_id: str
    line: int
    model: str
    state: JobState
    attempt: int
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    problem: str | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFilter:
    """Lines to list: those behind a line, in a state, with an error code, with a part of a `custom_id` in any case.

    `lines` are numbers of lines; None stands for all.
    """

    after_line: int = 0
    status: JobState | None = None
    code: str | None = None
    query: str | None = None
    lines: tuple[int, ...] | None = None


class LineTexts(NamedTuple):
    """The stored JSON of a line."""

    line: int
    body: str
    answer: str | None


class RecentPace(NamedTuple):
    """The last lines of a batch that ended: how many in how many seconds up to `now`, and the tokens computed for them."""

    batch_id: str
    lines: int
    seconds: float
    tokens: int
    now: datetime


class Latencies(NamedTuple):
    """Statistics of the seconds that `lines` were in an engine; None without lines."""

    lines: int
    seconds: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None


class CodeCount(NamedTuple):
    """The number of lines that failed with an error code, and the first of them."""

    code: str | None
    lines: int
    custom_id: str
    problem: str


class Bucket(NamedTuple):
    """The lines that ended in one part of a timeline, counted from 0, and their tokens."""

    number: int
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int


class EngineCount(NamedTuple):
    """The number of lines that an engine has computed."""

    model: str
    model_hash: str | None
    engine_build: str | None
    lines: int


def list_requests(batch_id: str, chosen: LineFilter, limit: int) -> Query[LineSummary]:
    """List lines in input order."""
    conditions = _conditions(batch_id, chosen)
    return Query(select(*columns_of(Job, LineSummary)).where(*conditions).order_by(Job.line).limit(limit), LineSummary)


def list_rows(batch_id: str, chosen: LineFilter, limit: int) -> Query[JobRow]:
    """List the same lines with their bodies and answers."""
    return Query(select(*JOB).where(*_conditions(batch_id, chosen)).order_by(Job.line).limit(limit), JobRow)


def list_texts(batch_id: str, chosen: LineFilter, words: list[str], pattern: str | None) -> Query[LineTexts]:
    """List lines whose body, or whose answer, has all these words of ASCII in any case, and a regular expression."""
    conditions = _conditions(batch_id, chosen)
    conditions.append(or_(*(_may_have(column, words, pattern) for column in (Job.body, Job.answer))))
    return Query(select(*columns_of(Job, LineTexts)).where(*conditions).order_by(Job.line), LineTexts)


def _conditions(batch_id: str, chosen: LineFilter) -> list[ColumnElement[bool]]:
    conditions = [Job.batch_id == batch_id, Job.line > chosen.after_line]
    if chosen.status is not None:
        conditions.append(Job.state == chosen.status)
    if chosen.status is JobState.QUEUED:
        conditions.append(Job.line >= _first_open_line(batch_id))
    if chosen.code is not None:
        # written as OR so that the planner uses the index on lines without an answer
        conditions += [or_(*(Job.state == state for state in _UNANSWERED)), _code() == chosen.code]
    if chosen.query is not None:
        conditions.append(Job.custom_id.icontains(chosen.query, autoescape=True))
    if chosen.lines is not None:
        conditions.append(Job.line.in_(chosen.lines))
    return conditions


def _first_open_line(batch_id: str) -> ScalarSelect[int]:
    """The first line that may wait, so that the ended ones in front of it are not read; NULL when no shard is open."""
    is_open = (Shard.batch_id == batch_id, Shard.state != ShardState.DONE)
    return select(func.min(func.coalesce(Shard.first_line, 0))).where(*is_open).scalar_subquery()


def _may_have(
    column: InstrumentedAttribute[Any], words: list[str], pattern: str | None
) -> ColumnElement[bool]:  # Any: text, or text or null
    """Compare words as bytes, which is several times as fast as by the rules of a language."""
    found = [column.collate("C").icontains(word) for word in words]
    return and_(true(), *found, *([] if pattern is None else [column.regexp_match(pattern)]))


def find_request(batch_id: str, name: str) -> Query[JobRow]:
    """Find a line by its `custom_id`, else by its id."""
    statement = (
        select(*JOB)
        .where(Job.batch_id == batch_id, or_(Job.custom_id == name, Job.id == name))
        .order_by((Job.custom_id == name).desc())
        .limit(1)
    )
    return Query(statement, JobRow)


def recent_pace(batch_ids: list[str]) -> Query[RecentPace]:
    """Measure the last lines of each batch up to now, so that a stall shows at once.

    Counts from its start or its last pause; in a long batch from the end of the oldest of those lines, which then only
    marks the beginning.
    """
    return Query(_recent_pace_statement(), RecentPace, {"batch_ids": batch_ids})


@cache
def _recent_pace_statement() -> Select[*tuple[Any, ...]]:  # Any: the columns of RecentPace
    begun_at = func.greatest(Batch.in_progress_at, Batch.resumed_at)
    tokens = (Job.prompt_tokens - Job.cached_tokens + Job.completion_tokens).label("tokens")
    last = (  # filtered afterwards, so that no more lines are read than these; rejected ones ended before all others
        select(Job.finished_at, Job.shard_id, tokens)
        .where(Job.batch_id == Batch.id, Job.finished_at.is_not(None))
        .order_by(Job.finish_xact.desc(), Job.line.desc())
        .limit(_RECENT_LINES)
        .correlate(Batch)
        .subquery("last")
    )
    recent = (
        select(last.c.finished_at, last.c.tokens)
        .where(last.c.finished_at > begun_at, last.c.shard_id.is_not(None))
        .correlate(Batch)
        .subquery("recent")
    )
    oldest, is_whole = func.min(recent.c.finished_at).over(), func.count().over() < _RECENT_LINES
    marked = (
        select(recent, case((is_whole, begun_at), else_=oldest).label("from_at")).correlate(Batch).lateral("marked")
    )
    return (
        select(
            Batch.id.label("batch_id"),
            func.count().label("lines"),
            cast(func.extract("epoch", func.now() - marked.c.from_at), Float).label("seconds"),
            total(marked.c.tokens).label("tokens"),
            func.now().label("now"),
        )
        .select_from(Batch)
        .join(marked, marked.c.finished_at > marked.c.from_at)
        .where(Batch.id.in_(bindparam("batch_ids", expanding=True)))
        .group_by(Batch.id, marked.c.from_at)
    )


def latencies(batch_id: str) -> Query[Latencies]:
    """Measure the time that the lines of a batch were in an engine."""
    seconds = cast(func.extract("epoch", Job.finished_at - Job.started_at), Float)
    percentiles = (
        func.percentile_cont(literal(percent / 100)).within_group(seconds).label(f"p{percent}")
        for percent in (50, 90, 95, 99)
    )
    statement = select(
        func.count().label("lines"), func.sum(seconds).label("seconds"), *percentiles, func.max(seconds).label("max")
    ).where(Job.batch_id == batch_id, Job.started_at.is_not(None), Job.finished_at.is_not(None))
    return Query(statement, Latencies)


def active_seconds(batch_id: str) -> Select[float]:
    """Measure the time in which at least one line was in an engine; parallel lines count once."""
    before = func.max(Job.finished_at).over(order_by=(Job.started_at, Job.id), rows=(None, -1))
    spans = (
        select(Job.finished_at, func.greatest(Job.started_at, func.coalesce(before, Job.started_at)).label("from_at"))
        .where(Job.batch_id == batch_id, Job.started_at.is_not(None), Job.finished_at.is_not(None))
        .subquery()
    )
    new = func.greatest(func.extract("epoch", spans.c.finished_at - spans.c.from_at), 0)
    return select(cast(func.coalesce(func.sum(new), 0), Float))


def error_codes(batch_id: str, limit: int) -> Query[CodeCount]:
    """Count the error codes of lines without an answer, the most frequent first."""
    code = _code().label("code")
    counts = (
        select(code, func.count().label("lines"), func.min(Job.line).label("line"))
        .where(Job.batch_id == batch_id, or_(*(Job.state == state for state in _UNANSWERED)))
        .group_by(code)
        .order_by(func.count().desc(), code)
        .limit(limit)
        .subquery()
    )
    statement = (
        select(counts.c.code, counts.c.lines, Job.custom_id, Job.problem)
        .join(Job, (Job.batch_id == batch_id) & (Job.line == counts.c.line))
        .order_by(counts.c.lines.desc(), counts.c.code)
    )
    return Query(statement, CodeCount)


def timeline(batch_id: str, from_at: datetime, seconds: float, num_buckets: int) -> Query[Bucket]:
    """Count the lines that ended in each part of `seconds` from a time on; those outside of it count in the nearest part.

    Parts without lines are left out.
    """
    since = func.extract("epoch", Job.finished_at - from_at) / seconds
    number = cast(func.greatest(func.least(func.floor(since), num_buckets - 1), 0), Integer).label("number")
    completed = func.count().filter(Job.state == JobState.COMPLETED)
    statement = (
        select(
            number,
            completed.label("completed"),
            (func.count() - completed).label("failed"),
            total(Job.prompt_tokens).label("input_tokens"),
            total(Job.completion_tokens).label("output_tokens"),
        )
        .where(Job.batch_id == batch_id, Job.finished_at.is_not(None))
        .group_by(number)
        .order_by(number)
    )
    return Query(statement, Bucket)


def engines(batch_id: str) -> Query[EngineCount]:
    """Count the lines of each engine."""
    statement = (
        select(Job.model, Job.model_hash, Job.engine_build, func.count().label("lines"))
        .where(Job.batch_id == batch_id, Job.engine_build.is_not(None))
        .group_by(Job.model, Job.model_hash, Job.engine_build)
        .order_by(Job.model, Job.engine_build)
    )
    return Query(statement, EngineCount)


def _code() -> ColumnElement[str]:
    code: ColumnElement[str] = cast(Job.problem, JSON)["code"].as_string()
    return code
