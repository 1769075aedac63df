"""Quota of a batch: the limits of its key and its tenant, checked when its lines are counted.

A batch that was created without a key has only its tenant's limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from core.schemas.objects import BatchError
from db import keys


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchQuota:
    """Limits of a key: `models` that it may use (None: all), and its `queued_tokens` (None: no limit)."""

    tenant_id: str
    key_id: str | None
    models: tuple[str, ...] | None = None
    queued_tokens: int | None = None


def read_quota(connection: Connection, tenant_id: str, key_id: str | None) -> BatchQuota:
    """Read the limits of a batch's key, also of one that was revoked since: an accepted batch runs as it was accepted."""
    key = keys.find_key(key_id).fetch_optional(connection) if key_id else None
    if key is None:
        return BatchQuota(tenant_id=tenant_id, key_id=None)
    models = None if key.models is None else tuple(key.models)
    return BatchQuota(tenant_id=tenant_id, key_id=key_id, models=models, queued_tokens=key.queued_tokens)


def check_quota(connection: Connection, quota: BatchQuota, *, lines: int, tokens: int) -> BatchError | None:
    """The error when the lines exceed a limit; None when there is room, which is then reserved until the transaction ends."""
    return _excess_tokens(connection, quota, tokens) or _excess_lines(connection, quota, lines)


def _excess_tokens(connection: Connection, quota: BatchQuota, tokens: int) -> BatchError | None:
    limit, key_id = quota.queued_tokens, quota.key_id
    if limit is None or key_id is None:
        return None
    connection.execute(keys.lock_quota(key_id))
    queued = connection.execute(keys.queued_in_batches(quota.tenant_id, key_id)).scalar_one()
    if queued + tokens <= limit:
        return None
    message = (
        f"Enqueued token limit reached. Limit: {limit} enqueued tokens, of which {queued} are in use; this batch has about "
        f"{tokens}. Please try again once some in_progress batches have been completed."
    )
    return BatchError(code="token_limit_exceeded", message=message)


def _excess_lines(connection: Connection, quota: BatchQuota, lines: int) -> BatchError | None:
    limit = keys.open_batches(quota.tenant_id).fetch_one(connection).max_lines
    if limit is None:
        return None
    connection.execute(keys.lock_quota(quota.tenant_id))
    queued = keys.open_batches(quota.tenant_id).fetch_one(connection).lines
    if queued + lines <= limit:
        return None
    message = (
        f"Enqueued line limit reached. Limit: {limit} lines in batches that have not ended, of which {queued} are in use; "
        f"this batch has {lines}. Please try again once some in_progress batches have been completed."
    )
    return BatchError(code="line_limit_exceeded", message=message)
