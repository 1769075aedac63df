"""Statements that list the batches of a tenant, and follow them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import ARRAY, ColumnElement, Text, cast, exists, func, literal, or_, select, union
from sqlalchemy.dialects.postgresql import JSONB

from core.states import FINAL_BATCH_STATES, BatchState, ShardState
from db.batches import BATCH, BatchRow
from db.query import Query
from db.tables import Batch, Shard

_METADATA: Final = cast(Batch.metadata_json, JSONB)
_TAKES_NO_LINES: Final = (*FINAL_BATCH_STATES, BatchState.CANCELLING)
_OPEN: Final = tuple(state for state in BatchState if state not in FINAL_BATCH_STATES)


class BatchNews(NamedTuple):
    """The clock of the database, and whether the batches of a tenant may have changed."""

    now: datetime
    has_news: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFilter:
    """Selects batches of a list. An empty value selects all.

    `statuses` and `is_paused` are alternatives: any of these statuses, or paused. `model` is one of its lines; `text` is part of
    its id, of its name in the metadata or of the name of its file, in any case; `metadata` holds pairs that it must have;
    `parent_id` is the batch that it retries; `file_id` is its input, its output or its errors.
    """

    statuses: Collection[BatchState] = ()
    is_paused: bool = False
    model: str | None = None
    text: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    parent_id: str | None = None
    file_id: str | None = None


def list_batches(tenant_id: str, wanted: BatchFilter, *, after: str | None, limit: int) -> Query[BatchRow]:
    """List batches, newest first, from behind `after`; ids sort by time."""
    statement = select(*BATCH).where(Batch.tenant_id == tenant_id, *_conditions(wanted))
    if after is not None:
        statement = statement.where(Batch.id < after)
    return Query(statement.order_by(Batch.id.desc()).limit(limit), BatchRow)


def batch_news(tenant_id: str, since: datetime) -> Query[BatchNews]:
    """Look for a reason to read the batches of a tenant again: one was changed after `since`, or shards run."""
    changed = exists().where(Batch.tenant_id == tenant_id, Batch.updated_at > since)
    running = exists().where(Shard.tenant_id == tenant_id, Shard.state == ShardState.RUNNING)
    return Query(select(func.now().label("now"), (changed | running).label("has_news")), BatchNews)


def live_batches(
    tenant_id: str, *, since: datetime, known: Sequence[str], most_open: int, most_changed: int | None
) -> Query[BatchRow]:
    """List, newest first, the newest batches that have not ended, all that have running shards, those changed after `since`,
    and those of these ids. `most_changed` None: all of them.
    """
    is_mine = Batch.tenant_id == tenant_id
    newest = select(Batch.id).where(is_mine, Batch.status.in_(_OPEN)).order_by(Batch.id.desc()).limit(most_open)
    running = select(Shard.batch_id).where(Shard.tenant_id == tenant_id, Shard.state == ShardState.RUNNING)
    changed = select(Batch.id).where(is_mine, Batch.updated_at > since).order_by(Batch.updated_at.desc())
    named = select(func.unnest(literal([*known], ARRAY(Text))))
    ids = union(newest.subquery().select(), running, changed.limit(most_changed).subquery().select(), named).subquery()
    statement = select(*BATCH).where(is_mine, Batch.id.in_(ids.select())).order_by(Batch.id.desc())
    return Query(statement, BatchRow)


def _conditions(wanted: BatchFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.statuses or wanted.is_paused:
        is_paused = Batch.paused_at.is_not(None) & Batch.status.not_in(_TAKES_NO_LINES)
        is_in_state = Batch.status.in_(wanted.statuses)
        yield is_in_state | is_paused if wanted.is_paused else is_in_state
    if wanted.model is not None:
        of_several = exists().where(Shard.batch_id == Batch.id, Shard.model == wanted.model)
        yield (Batch.model == wanted.model) | (Batch.model.is_(None) & of_several)
    if wanted.text:
        texts = (Batch.id, Batch.input_file_name, _METADATA["name"].astext)
        yield or_(*(each.icontains(wanted.text, autoescape=True) for each in texts))
    if wanted.parent_id is not None:
        yield Batch.parent_batch_id == wanted.parent_id
    if wanted.metadata:
        yield _METADATA.contains(dict(wanted.metadata))
    if wanted.file_id is not None:
        yield or_(
            *(each == wanted.file_id for each in (Batch.input_file_id, Batch.output_file_id, Batch.error_file_id))
        )
