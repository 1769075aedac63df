"""Statements on tenants and their keys: create, find and end them, and count what is used of their limits.

A key is found by the digest of its text, so the database never compares a secret itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    Select,
    and_,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.sql.dml import ReturningUpdate

from core.api_keys import KeyLimits, KeyState, NewKey
from core.errors import ConfigError
from core.settings import Settings
from core.states import FINAL_BATCH_STATES, JobState
from db.query import Query, columns_of, total
from db.tables import ApiKey, Batch, Job, Tenant


class KeyRow(NamedTuple):
    """A key of a tenant."""

    id: str
    tenant_id: str
    name: str
    prefix: str
    digest: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    scopes: list[str]
    models: list[str] | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    queued_tokens: int | None
    concurrent_streams: int | None
    calls_per_minute: int | None

    @property
    def limits(self) -> KeyLimits:
        """The limits of this key."""
        return KeyLimits(**{each.name: getattr(self, each.name) for each in fields(KeyLimits)})

    @property
    def state(self) -> KeyState:
        """The state at this moment."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        is_over = self.expires_at is not None and self.expires_at <= datetime.now(UTC)
        return KeyState.EXPIRED if is_over else KeyState.VALID


class OpenBatches(NamedTuple):
    """Limits of a tenant (None: no limit), and how many batches that have not ended, and lines of them, it has."""

    max_batches: int | None
    max_lines: int | None
    batches: int
    lines: int


# Columns that a rotation copies.
COPIED: Final = (
    "tenant_id", "name", "scopes", "models", "requests_per_minute", "tokens_per_minute", "queued_tokens",
    "concurrent_streams", "calls_per_minute",
)  # fmt: skip
_KEY = columns_of(ApiKey, KeyRow)


def add_tenant(tenant_id: str) -> PostgresInsert:
    """Insert a tenant, unless it exists."""
    return postgres_insert(Tenant).values(id=tenant_id).on_conflict_do_nothing()


def set_caps(
    tenant_id: str, *, open_batches: int | None, queued_lines: int | None, storage_bytes: int | None = None
) -> ReturningUpdate[str]:
    """Limit the open batches, queued lines and stored bytes of a tenant; None is no limit of its own. No row: unknown tenant."""
    caps = {"open_batches": open_batches, "queued_lines": queued_lines, "storage_bytes": storage_bytes}
    return update(Tenant).where(Tenant.id == tenant_id).values(**caps).returning(Tenant.id)


def insert_key(**columns: Any) -> Insert:  # Any: the columns' own types
    """Insert a key of a tenant that exists."""
    return insert(ApiKey).values(**columns)


def create_key(key_id: str, made: NewKey, **columns: Any) -> Query[KeyRow]:  # Any: the columns' own types
    """Insert a new key of a tenant that exists."""
    statement = insert_key(id=key_id, prefix=made.prefix, digest=made.digest, **columns)
    return Query(statement.returning(*_KEY), KeyRow)


def any_key() -> Select[bool]:
    """Is there any key? A revoked one counts, so that revoking the last key does not open the server to all."""
    return select(exists().where(ApiKey.id.is_not(None)))


def find_valid_key(digest: str) -> Query[KeyRow]:
    """Find the key with this digest, if it is neither revoked nor expired."""
    return Query(select(*_KEY).where(ApiKey.digest == digest, _is_valid()), KeyRow)


def still_valid(key_ids: Collection[str]) -> Select[str]:
    """Return the ids of those keys that are neither revoked nor expired."""
    return select(ApiKey.id).where(ApiKey.id.in_(key_ids), _is_valid())


def _is_valid() -> ColumnElement[bool]:
    is_current = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
    return and_(ApiKey.revoked_at.is_(None), is_current)


def find_key(key_id: str, tenant_id: str | None = None) -> Query[KeyRow]:
    """Find a key by its id, valid or not; of any tenant, or of this one only."""
    is_theirs = [] if tenant_id is None else [ApiKey.tenant_id == tenant_id]
    return Query(select(*_KEY).where(ApiKey.id == key_id, *is_theirs), KeyRow)


def list_keys() -> Query[KeyRow]:
    """List the keys of all tenants, by tenant and age."""
    return Query(select(*_KEY).order_by(ApiKey.tenant_id, ApiKey.created_at, ApiKey.id), KeyRow)


def list_tenant_keys(tenant_id: str, *, after: str | None, limit: int) -> Query[KeyRow]:
    """List the keys of a tenant, newest first, from behind `after`; ids sort by time."""
    statement = select(*_KEY).where(ApiKey.tenant_id == tenant_id)
    if after is not None:
        statement = statement.where(ApiKey.id < after)
    return Query(statement.order_by(ApiKey.id.desc()).limit(limit), KeyRow)


def count_valid_keys(tenant_id: str) -> Select[int]:
    """Count the keys of a tenant that are neither revoked nor expired."""
    return select(func.count()).select_from(ApiKey).where(ApiKey.tenant_id == tenant_id, _is_valid())


def revoke_key(key_id: str) -> ReturningUpdate[str]:
    """Revoke a key now; one that is revoked keeps its `revoked_at`. No row: there is no such key."""
    return (
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .values(revoked_at=func.coalesce(ApiKey.revoked_at, func.now()))
        .returning(ApiKey.id)
    )


def rotate_key(
    key_id: str, new_key_id: str, made: NewKey, *, grace: timedelta, expires_at: datetime | None
) -> Query[KeyRow]:
    """Insert a key with the rights of another, which expires after `grace` at the latest. No row: that one is revoked or
    unknown."""
    end = func.least(func.coalesce(ApiKey.expires_at, func.now() + grace), func.now() + grace)
    old = (
        update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(expires_at=end)
        .returning(*(getattr(ApiKey, name) for name in COPIED))
        .cte("old")
    )
    new = {
        "id": literal(new_key_id),
        "prefix": literal(made.prefix),
        "digest": literal(made.digest),
        "expires_at": literal(expires_at, ApiKey.expires_at.type),
        **{name: old.c[name] for name in COPIED},
    }
    statement = insert(ApiKey).from_select(list(new), select(*new.values())).returning(*_KEY)
    return Query(statement, KeyRow)


def open_batches(tenant_id: str) -> Query[OpenBatches]:
    """Return a tenant's limits on open batches and what it uses of them. No row: unknown tenant."""
    is_open = (Batch.tenant_id == tenant_id, Batch.status.not_in(FINAL_BATCH_STATES))
    statement = select(
        Tenant.open_batches.label("max_batches"),
        Tenant.queued_lines.label("max_lines"),
        select(func.count()).select_from(Batch).where(*is_open).scalar_subquery().label("batches"),
        select(total(Batch.lines)).where(*is_open).scalar_subquery().label("lines"),
    ).where(Tenant.id == tenant_id)
    return Query(statement, OpenBatches)


def queued_in_batches(tenant_id: str, key_id: str) -> Select[int]:
    """Sum up the estimated prompt tokens of a key's batches that have not ended."""
    return select(total(Batch.queued_tokens)).where(
        Batch.tenant_id == tenant_id, Batch.key_id == key_id, Batch.status.not_in(FINAL_BATCH_STATES)
    )


def queued_in_jobs(key_id: str) -> Select[int]:
    """Sum up the bytes of a key's chat requests that have not ended."""
    return select(total(func.octet_length(Job.body))).where(
        Job.key_id == key_id, Job.state.in_((JobState.QUEUED, JobState.RUNNING))
    )


def lock_quota(owner: str) -> Select[None]:
    """Lock a quota until the transaction ends, so that its use is read and raised by one transaction at a time.

    `owner` is the id of a tenant or key, with the name of the quota where it has several.
    """
    return select(func.pg_advisory_xact_lock(func.hashtextextended("quota:" + owner, 0)))


def needs_key(connection: Connection, settings: Settings) -> bool:
    """Is the server reachable from other machines, with no key and no setting that allows this?"""
    is_decided = settings.is_loopback or settings.open_without_keys
    return not is_decided and not connection.execute(any_key()).scalar_one()


def check_exposure(connection: Connection, settings: Settings) -> None:
    """Raise ConfigError when the server is reachable from other machines and has no key."""
    if not needs_key(connection, settings):
        return
    raise ConfigError(
        f"Listening on {settings.host} without a key would serve every caller. Create one with `millrace keys create`, "
        "listen on 127.0.0.1, or set MILLRACE_OPEN_WITHOUT_KEYS=true if that is what you want."
    )
