"""Statements that list the batches of a tenant."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import ColumnElement, cast, exists, or_, select
from sqlalchemy.dialects.postgresql import JSONB

from core.states import FINAL_BATCH_STATES, BatchState
from db.batches import BATCH, BatchRow
from db.query import Query
from db.tables import Batch, Shard

_METADATA: Final = cast(Batch.metadata_json, JSONB)
_TAKES_NO_LINES: Final = (*FINAL_BATCH_STATES, BatchState.CANCELLING)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFilter:
    """Selects batches of a list. An empty value selects all.

    `statuses` and `is_paused` are alternatives: any of these statuses, or paused. `model` is one of its lines; `text` is part of
    its id, of its name in the metadata or of the name of its file, in any case; `metadata` holds pairs that it must have;
    `parent_id` is the batch that it retries.
    """

    statuses: Collection[BatchState] = ()
    is_paused: bool = False
    model: str | None = None
    text: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    parent_id: str | None = None


def list_batches(tenant_id: str, wanted: BatchFilter, *, after: str | None, limit: int) -> Query[BatchRow]:
    """List batches, newest first, from behind `after`; ids sort by time."""
    statement = select(*BATCH).where(Batch.tenant_id == tenant_id, *_conditions(wanted))
    if after is not None:
        statement = statement.where(Batch.id < after)
    return Query(statement.order_by(Batch.id.desc()).limit(limit), BatchRow)


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
