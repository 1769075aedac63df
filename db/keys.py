"""Statements on tenants and their keys: make, find, end them, and what counts against their limits.

A key is found by the digest of its text, so no text of a client ever meets another in a comparison of the database's own.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, Select, and_, exists, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import insert as postgres_insert

from core.errors import ConfigError
from core.settings import Settings
from core.states import FINAL_BATCH_STATES, JobState
from db.tables import ApiKey, Batch, Job, Tenant


def add_tenant(tenant_id: str) -> PostgresInsert:
    """A tenant, unless it is there already."""
    return postgres_insert(Tenant).values(id=tenant_id).on_conflict_do_nothing()


def set_caps(
    tenant_id: str, *, open_batches: int | None, queued_lines: int | None, storage_bytes: int | None = None
) -> Any:  # Any: ReturningUpdate
    """What a tenant may have waiting, and store; None is no cap of its own. No row: there is no such tenant."""
    caps = {"open_batches": open_batches, "queued_lines": queued_lines, "storage_bytes": storage_bytes}
    return update(Tenant).where(Tenant.id == tenant_id).values(**caps).returning(Tenant.id)


def insert_key(**columns: Any) -> Insert:  # Any: the columns' own types
    """A key of a tenant that exists."""
    return insert(ApiKey).values(**columns).returning(ApiKey)


def any_key() -> Select[bool]:
    """Was there ever a key? One that was revoked counts: revoking the last key must not open the door."""
    return select(exists().where(ApiKey.id.is_not(None)))


def find_valid_key(digest: str) -> Select[ApiKey]:
    """The key of this digest, if it is neither revoked nor expired."""
    return select(ApiKey.__table__).where(ApiKey.digest == digest, _is_valid())


def still_valid(key_ids: Collection[str]) -> Select[str]:
    """Which of these keys are neither revoked nor expired, by id."""
    return select(ApiKey.id).where(ApiKey.id.in_(key_ids), _is_valid())


def _is_valid() -> ColumnElement[bool]:
    is_current = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
    return and_(ApiKey.revoked_at.is_(None), is_current)


def find_key(key_id: str) -> Select[ApiKey]:
    """A key in any state, by its id."""
    return select(ApiKey.__table__).where(ApiKey.id == key_id)


def list_keys() -> Select[ApiKey]:
    """All keys of all tenants, oldest first within each."""
    return select(ApiKey.__table__).order_by(ApiKey.tenant_id, ApiKey.created_at, ApiKey.id)


def revoke_key(key_id: str) -> Any:  # Any: ReturningUpdate
    """End a key now; one that has ended keeps its first moment. No row: there is no such key."""
    return (
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .returning(ApiKey.id)
    )


def retire_key(key_id: str, grace: timedelta) -> Any:  # Any: ReturningUpdate of the new `expires_at`
    """Let a key end after `grace`, or earlier if it would have anyway. No row: it is revoked or unknown."""
    end = func.least(func.coalesce(ApiKey.expires_at, func.now() + grace), func.now() + grace)
    return (
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(expires_at=end)
        .returning(ApiKey.expires_at)
    )


def open_batches(tenant_id: str) -> Select[int | None, int | None, int, int]:
    """A tenant's caps (batches, lines), and what it has in batches that have not ended (batches, lines)."""
    waiting = (Batch.tenant_id == tenant_id, Batch.status.not_in(FINAL_BATCH_STATES))
    return select(
        Tenant.open_batches,
        Tenant.queued_lines,
        select(func.count()).select_from(Batch).where(*waiting).scalar_subquery(),
        select(func.coalesce(func.sum(Batch.lines), 0)).where(*waiting).scalar_subquery(),
    ).where(Tenant.id == tenant_id)


def queued_in_batches(tenant_id: str, key_id: str) -> Select[int]:
    """Estimated prompt tokens of a key's batches that have not ended."""
    return select(func.coalesce(func.sum(Batch.queued_tokens), 0)).where(
        Batch.tenant_id == tenant_id, Batch.key_id == key_id, Batch.status.not_in(FINAL_BATCH_STATES)
    )


def queued_in_jobs(key_id: str) -> Select[int]:
    """Bytes of a key's chat requests that have not ended."""
    return select(func.coalesce(func.sum(func.octet_length(Job.body)), 0)).where(
        Job.key_id == key_id, Job.state.in_((JobState.QUEUED, JobState.RUNNING))
    )


def lock_quota(owner: str) -> Select[None]:
    """One at a time asks for room and takes it, until its transaction ends. `owner`: whose room, and of what if of several."""
    return select(func.pg_advisory_xact_lock(func.hashtextextended("quota:" + owner, 0)))


def check_exposure(connection: Connection, settings: Settings) -> None:
    """Raise ConfigError when others than this machine could come in and no key keeps them out."""
    if settings.is_loopback or settings.open_without_keys or connection.execute(any_key()).scalar_one():
        return
    raise ConfigError(
        f"Listening on {settings.host} without a key would let anybody in. Make one with `millrace keys create`, "
        "listen on 127.0.0.1, or set MILLRACE_OPEN_WITHOUT_KEYS=true if that is what you want."
    )
