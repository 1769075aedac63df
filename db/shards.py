"""Statements on shards: claim, renew, write results under the fence, release, finish. The clock is the database's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Interval,
    Select,
    TextClause,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, INTEGER, TEXT
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningUpdate

from core.states import BatchState, JobState, ShardState
from db.jobs import Provenance
from db.query import Query
from db.tables import Batch, Job, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """The result of a line: an answer with its tokens, or a problem (JSON text of `core.errors.Problem`).

    `seconds` is its time in the engine, with the wait for a slot; None for a line that was not run itself.
    """

    job_id: str
    answer: str | None = None
    problem: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    seconds: float | None = None

    @property
    def is_completed(self) -> bool:
        """Does the line go to the output file?"""
        return self.answer is not None


class ClaimedShard(NamedTuple):
    """A shard under a lease; `key_id` is that of its batch, or empty, and `origin_json` is the batch's, too."""

    id: str
    batch_id: str
    tenant_id: str
    model: str
    fence: int
    attempt: int
    endpoint: str
    key_id: str
    origin_json: str | None


class QueuedLine(NamedTuple):
    """A line without a result; a `body` of None is that of the line before."""

    id: str
    body: str | None
    crashes: int


class RenewedShard(NamedTuple):
    """A shard with a renewed lease, and the status of its batch."""

    id: str
    fence: int
    status: BatchState


class BatchStatus(NamedTuple):
    """The status of a shard's batch."""

    status: BatchState
    is_paused: bool


def is_claimable() -> ColumnElement[bool]:
    """May a worker take this shard?"""
    return or_(
        Shard.state == ShardState.READY,
        and_(Shard.state == ShardState.RUNNING, Shard.lease_until < func.now()),
    )


def claim_next_shard(model: str, owner: str, lease: timedelta) -> Query[ClaimedShard]:
    """Take the most urgent shard of a model: highest priority, then earliest deadline (by the hour), then the tenant with
    the fewest running shards. Shards of paused batches are not taken. No row: there is none to take.

    Reads the first open shard of each open batch, so the cost grows with batches, not with their lines. Two workers never
    get the same shard (SKIP LOCKED, then the condition again).
    """
    return Query(_claim_statement(), ClaimedShard, {"of_model": model, "new_owner": owner, "lease": lease})


@cache
def _claim_statement() -> ReturningUpdate[*tuple[Any, ...]]:  # Any: the columns of ClaimedShard
    held = aliased(Shard)
    running_of_tenant = (
        select(func.count())
        .where(held.tenant_id == Batch.tenant_id, held.state == ShardState.RUNNING)
        .correlate(Batch)
        .scalar_subquery()
    )
    first_of_batch = (
        select(Shard.id)
        .where(Shard.batch_id == Batch.id, Shard.model == bindparam("of_model"), is_claimable())
        .order_by(Shard.position)
        .limit(1)
        .with_for_update(skip_locked=True)
        .correlate(Batch)
        .lateral()
    )
    best = (
        select(first_of_batch.c.id)
        .select_from(Batch)
        .join(first_of_batch, true())
        .where(Batch.status == BatchState.IN_PROGRESS, Batch.paused_at.is_(None))
        .order_by(Batch.priority.desc(), func.date_trunc("hour", Batch.expires_at), running_of_tenant, Batch.expires_at)
        .limit(1)
        .scalar_subquery()
    )
    of_batch = Batch.id == Shard.batch_id
    endpoint = select(Batch.endpoint).where(of_batch).scalar_subquery().label("endpoint")
    key_id = select(func.coalesce(Batch.key_id, "")).where(of_batch).scalar_subquery().label("key_id")
    origin_json = select(Batch.origin_json).where(of_batch).scalar_subquery().label("origin_json")
    return (
        update(Shard)
        .where(Shard.id == best, is_claimable())
        .values(
            state=ShardState.RUNNING,
            owner=bindparam("new_owner"),
            fence=Shard.fence + 1,
            attempt=Shard.attempt + 1,
            lease_until=func.now() + bindparam("lease", type_=Interval()),
        )
        .returning(
            Shard.id,
            Shard.batch_id,
            Shard.tenant_id,
            Shard.model,
            Shard.fence,
            Shard.attempt,
            endpoint,
            key_id,
            origin_json,
        )
    )


def queued_lines(shard_id: str) -> Query[QueuedLine]:
    """List the lines of a shard that have no result yet, in the plan's order.

    A body that repeats that of the line before is not read again, so a shard with the same body in each of its lines is
    no larger than that body.
    """
    return Query(_queued_lines_statement(), QueuedLine, {"of_shard": shard_id})


@cache
def _queued_lines_statement() -> Select[*tuple[Any, ...]]:  # Any: the columns of QueuedLine
    before = func.lag(Job.body).over(order_by=Job.position)
    return (
        select(Job.id, case((Job.body == before, None), else_=Job.body).label("body"), Job.crashes)
        .where(Job.shard_id == bindparam("of_shard"), Job.state == JobState.QUEUED)
        .order_by(Job.position)
    )


def renew_shards(held: Mapping[str, int], lease: timedelta) -> Query[RenewedShard]:
    """Renew leases on shards by their fences; shards without a row are lost."""
    status = select(Batch.status).where(Batch.id == Shard.batch_id).scalar_subquery()
    statement = (
        update(Shard)
        .where(tuple_(Shard.id, Shard.fence).in_(held.items()), Shard.state == ShardState.RUNNING)
        .values(lease_until=func.now() + lease)
        .returning(Shard.id, Shard.fence, status.label("status"))
    )
    return Query(statement, RenewedShard)


def end_leases(slot: str) -> ReturningUpdate[str]:
    """End the leases on shards of processes that ended in this slot, and return the ids of the shards."""
    held = and_(Shard.state == ShardState.RUNNING, Shard.owner.startswith(slot, autoescape=True))
    return update(Shard).where(held, Shard.lease_until > func.now()).values(lease_until=func.now()).returning(Shard.id)


_MARK_LINES: Final = text(
    """
    WITH held AS (SELECT id FROM shards WHERE id = :shard_id AND fence = :fence AND state = 'running' FOR SHARE)
    UPDATE jobs SET crashes = new.crashes
    FROM held, unnest(:ids, :crashes) AS new(id, crashes)
    WHERE jobs.id = new.id AND jobs.shard_id = held.id AND jobs.state = 'queued'
    RETURNING jobs.id
    """
).bindparams(bindparam("ids", type_=ARRAY(TEXT)), bindparam("crashes", type_=ARRAY(INTEGER)))


def mark_lines(shard_id: str, fence: int, crashes: dict[str, int]) -> TextClause:
    """Store the number of crashes that each open line is suspected of. No row: the lease is lost."""
    return _MARK_LINES.bindparams(shard_id=shard_id, fence=fence, ids=list(crashes), crashes=list(crashes.values()))


_WRITE_LINES: Final = text(
    """
    WITH held AS (
        SELECT id FROM shards WHERE id = :shard_id AND fence = :fence AND state = 'running' FOR NO KEY UPDATE
    )
    UPDATE jobs SET
        state = CASE WHEN new.answer IS NULL THEN 'failed' ELSE 'completed' END,
        answer = new.answer, problem = new.problem, attempt = jobs.attempt + 1,
        prompt_tokens = new.prompt_tokens, completion_tokens = new.completion_tokens, cached_tokens = new.cached_tokens,
        reasoning_tokens = new.reasoning_tokens,
        engine_build = :build, model_hash = :model_hash, settings_hash = :settings_hash,
        template_hash = :template_hash, model_parameters = :model_parameters, finished_at = now(),
        started_at = now() - make_interval(secs => new.seconds), finish_xact = pg_current_xact_id()::text::bigint
    FROM held, unnest(
        string_to_array(:ids, chr(10)),
        string_to_array(:answers, chr(10), ''),
        string_to_array(:problems, chr(10), ''),
        CAST(string_to_array(:prompt, chr(10)) AS integer[]),
        CAST(string_to_array(:completion, chr(10)) AS integer[]),
        CAST(string_to_array(:cached, chr(10)) AS integer[]),
        CAST(string_to_array(:reasoning, chr(10)) AS integer[]),
        CAST(string_to_array(:seconds, chr(10), '') AS double precision[])
    ) AS new(id, answer, problem, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, seconds)
    WHERE jobs.id = new.id AND COALESCE(jobs.shard_id, '') = held.id AND jobs.state = 'queued'
    RETURNING jobs.id
    """
)


def write_lines(shard_id: str, fence: int, results: list[LineResult], provenance: Provenance) -> TextClause:
    """Store results of a shard's lines, and return the ids of those that were still open. Follow with `count_lines`.

    It locks the shard before its lines, as every statement does that ends a shard with its lines: in another order, the results
    and the end of their batch could each wait for the other. No line is touched under a fence that is lost.

    Rows are found by their ids: the index of the queue, which COALESCE rules out, would compare each line with each result.
    Each column is sent as one text with a value a line, since JSON needs no line break: an array would be searched for quotes
    and backslashes, which takes a hundred times as long.
    """
    return _WRITE_LINES.bindparams(
        shard_id=shard_id,
        fence=fence,
        build=provenance.build,
        model_hash=provenance.model_hash,
        settings_hash=provenance.settings_hash,
        template_hash=provenance.template_hash,
        model_parameters=provenance.model_parameters,
        ids=_column(result.job_id for result in results),
        answers=_column(result.answer for result in results),
        problems=_column(result.problem for result in results),
        prompt=_column(result.prompt_tokens for result in results),
        completion=_column(result.completion_tokens for result in results),
        cached=_column(result.cached_tokens for result in results),
        reasoning=_column(result.reasoning_tokens for result in results),
        seconds=_column(result.seconds for result in results),
    )


def _column(values: Iterable[str | float | None]) -> str:
    """A text with one value a line; an empty one is NULL."""
    return "\n".join(["" if value is None else str(value) for value in values])


_COUNT_LINES: Final = text(
    """
    UPDATE shards SET
        lines_completed = shards.lines_completed + :completed, lines_failed = shards.lines_failed + :failed,
        prompt_tokens = shards.prompt_tokens + :prompt, completion_tokens = shards.completion_tokens + :completion,
        cached_tokens = shards.cached_tokens + :cached, reasoning_tokens = shards.reasoning_tokens + :reasoning
    FROM batches
    WHERE shards.id = :shard_id AND shards.fence = :fence AND shards.state = 'running' AND batches.id = shards.batch_id
    RETURNING batches.status, batches.paused_at IS NOT NULL AS is_paused
    """
).columns(status=Batch.status.type, is_paused=Boolean())


def count_lines(shard_id: str, fence: int, written: list[LineResult]) -> Query[BatchStatus]:
    """Add the results that `write_lines` stored to the shard's counts, under the fence.

    No row: the lease is lost, and the transaction must be rolled back.
    """
    completed = sum(result.is_completed for result in written)
    counts = {
        "completed": completed,
        "failed": len(written) - completed,
        "prompt": sum(result.prompt_tokens for result in written),
        "completion": sum(result.completion_tokens for result in written),
        "cached": sum(result.cached_tokens for result in written),
        "reasoning": sum(result.reasoning_tokens for result in written),
    }
    return Query(_COUNT_LINES, BatchStatus, {"shard_id": shard_id, "fence": fence, **counts})


_LEAVE_SHARD: Final = text(
    """
    UPDATE shards SET
        state = CASE WHEN left_over.is_open THEN 'ready' ELSE 'done' END,
        attempt = CASE WHEN left_over.is_open THEN attempt - 1 ELSE attempt END,
        owner = NULL, lease_until = NULL
    FROM (SELECT EXISTS (SELECT FROM jobs WHERE shard_id = :shard_id AND state = 'queued') AS is_open) AS left_over
    WHERE id = :shard_id AND fence = :fence AND state = 'running'
    RETURNING state
    """
)


def leave_shard(shard_id: str, fence: int) -> TextClause:
    """Release a shard, and return its state: done when no line is open, else ready, without counting the attempt."""
    return _LEAVE_SHARD.bindparams(shard_id=shard_id, fence=fence)


def find_left(shard_id: str, fence: int) -> Select[ShardState]:
    """Return the state in which a shard was released under this fence, for a writer that got no reply to its commit."""
    return select(Shard.state).where(Shard.id == shard_id, Shard.fence == fence, Shard.state != ShardState.RUNNING)


def models_with_claimable_shards() -> Select[str]:
    """List the models with shards to take."""
    return (
        select(Shard.model)
        .join(Batch, Batch.id == Shard.batch_id)
        .where(is_claimable(), Batch.status == BatchState.IN_PROGRESS, Batch.paused_at.is_(None))
        .distinct()
    )
