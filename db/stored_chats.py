"""Statements on chat completions that are kept by `store`. Request, state and answer of one are in its job's row."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

from sqlalchemy import Delete, Insert, Select, Update, cast, delete, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB

from core.states import JobState
from db.query import Query
from db.tables import Job, StoredChat


class StoredChatRow(NamedTuple):
    """A kept chat completion that has an answer; `body` is its request."""

    id: str
    metadata_json: str
    body: str
    answer: str


def insert_stored_chat(job_id: str, tenant_id: str, model: str, metadata: Mapping[str, str]) -> Insert:
    """Insert the row that keeps a chat completion; belongs in the transaction that inserts its job."""
    return insert(StoredChat).values(
        job_id=job_id, tenant_id=tenant_id, model=model, metadata_json=json.dumps(metadata)
    )


def find_stored_chat(job_id: str, tenant_id: str) -> Query[StoredChatRow]:
    """Find a kept chat completion of this tenant. No row: there is none, or it has no answer."""
    return Query(_answered(tenant_id).where(Job.id == job_id), StoredChatRow)


def list_stored_chats(
    tenant_id: str,
    *,
    models: Collection[str] | None,
    metadata: Mapping[str, str],
    after: str | None,
    limit: int,
    newest_first: bool,
) -> Query[StoredChatRow]:
    """List a page that begins behind `after`, of any model or of these; ids sort by time.

    Each pair of `metadata` must be among those of a completion.
    """
    key = StoredChat.job_id
    statement = _answered(tenant_id)
    if models is not None:
        statement = statement.where(StoredChat.model.in_(models))
    if metadata:
        statement = statement.where(cast(StoredChat.metadata_json, JSONB).contains(dict(metadata)))
    if after is not None:
        statement = statement.where(key < after if newest_first else key > after)
    return Query(statement.order_by(key.desc() if newest_first else key).limit(limit), StoredChatRow)


def set_chat_metadata(job_id: str, tenant_id: str, metadata: Mapping[str, str]) -> Update:
    """Replace the metadata of a kept chat completion."""
    mine = (StoredChat.job_id == job_id) & (StoredChat.tenant_id == tenant_id)
    return update(StoredChat).where(mine).values(metadata_json=json.dumps(metadata))


def delete_stored_chat(job_id: str, tenant_id: str) -> Delete:
    """Delete a kept chat completion with its job, which holds its request and answer."""
    mine = select(StoredChat.job_id).where(StoredChat.job_id == job_id, StoredChat.tenant_id == tenant_id)
    return delete(Job).where(Job.id.in_(mine))


def _answered(tenant_id: str) -> Select[str, str, str, str | None]:
    columns = (Job.id, StoredChat.metadata_json, Job.body, Job.answer)
    joined = select(*columns).join(StoredChat, StoredChat.job_id == Job.id)
    return joined.where(StoredChat.tenant_id == tenant_id, Job.state == JobState.COMPLETED)
