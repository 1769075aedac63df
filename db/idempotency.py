"""Statements on idempotency keys.

A key is bound to the id of the object it makes before the object is made. So a request that takes the key over makes the
same object, and the primary key of the object's table ensures that there is only one.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Delete, Update, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import ReturningInsert

from db.query import Query, columns_of
from db.tables import IdempotencyKey as Key


class IdempotencyRow(NamedTuple):
    """A used key; without `finished_at`, its object may not exist yet."""

    fingerprint: str
    object_id: str
    finished_at: datetime | None


def claim_key(tenant_id: str, key: str, *, fingerprint: str, object_id: str, lock: timedelta) -> ReturningInsert[str]:
    """Take a new key, or one with a lock that is over; returns its object's id. No row: `find_key` shows why."""
    until = func.now() + lock
    new = insert(Key).values(
        tenant_id=tenant_id, key=key, fingerprint=fingerprint, object_id=object_id, locked_until=until
    )
    is_free = (Key.fingerprint == fingerprint) & Key.finished_at.is_(None) & (Key.locked_until <= func.now())
    taken = new.on_conflict_do_update(
        index_elements=[Key.tenant_id, Key.key], set_={"locked_until": until}, where=is_free
    )
    return taken.returning(Key.object_id)


def find_key(tenant_id: str, key: str) -> Query[IdempotencyRow]:
    """Find a key."""
    return Query(
        select(*columns_of(Key, IdempotencyRow)).where(Key.tenant_id == tenant_id, Key.key == key), IdempotencyRow
    )


def finish_key(tenant_id: str, key: str) -> Update:
    """Record that the key's object was made."""
    return update(Key).where(Key.tenant_id == tenant_id, Key.key == key).values(finished_at=func.now())


def unlock_key(tenant_id: str, key: str) -> Update:
    """Unlock a key after its request failed, maybe after the commit: the next request looks for the object first."""
    mine = update(Key).where(Key.tenant_id == tenant_id, Key.key == key, Key.finished_at.is_(None))
    return mine.values(locked_until=func.now())


def release_key(tenant_id: str, key: str) -> Delete:
    """Delete a key after its request was refused and made nothing, as if it was never used."""
    return delete(Key).where(Key.tenant_id == tenant_id, Key.key == key, Key.finished_at.is_(None))


def delete_key(tenant_id: str, key: str, kept: timedelta) -> Delete:
    """Delete a key that is older than `kept`."""
    return delete(Key).where(Key.tenant_id == tenant_id, Key.key == key, Key.created_at < func.now() - kept)


def delete_old_keys(kept: timedelta) -> Delete:
    """Delete all keys that are older than `kept`."""
    return delete(Key).where(Key.created_at < func.now() - kept)
