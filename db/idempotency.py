"""Statements on idempotency keys.

A key is bound to the id of the object it makes before that is made: whoever takes the key over makes the same object, and
the primary key of its table sees to it that there is only one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Delete, Select, Update, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from db.tables import IdempotencyKey as Key


def claim_key(
    tenant_id: str, key: str, *, fingerprint: str, object_id: str, lock: timedelta
) -> Any:  # Any: ReturningInsert
    """Take a new key, or one whose holder died; returns its object's id. No row: see `find_key`."""
    until = func.now() + lock
    new = insert(Key).values(
        tenant_id=tenant_id, key=key, fingerprint=fingerprint, object_id=object_id, locked_until=until
    )
    is_free = (Key.fingerprint == fingerprint) & Key.finished_at.is_(None) & (Key.locked_until <= func.now())
    taken = new.on_conflict_do_update(
        index_elements=[Key.tenant_id, Key.key], set_={"locked_until": until}, where=is_free
    )
    return taken.returning(Key.object_id)


def find_key(tenant_id: str, key: str) -> Select[Key]:
    """What a key stands for."""
    return select(Key).where(Key.tenant_id == tenant_id, Key.key == key)


def finish_key(tenant_id: str, key: str) -> Update:
    """Its object was made."""
    return update(Key).where(Key.tenant_id == tenant_id, Key.key == key).values(finished_at=func.now())


def unlock_key(tenant_id: str, key: str) -> Update:
    """Its request failed, maybe after the commit: the next one looks for the object first."""
    mine = update(Key).where(Key.tenant_id == tenant_id, Key.key == key, Key.finished_at.is_(None))
    return mine.values(locked_until=func.now())


def release_key(tenant_id: str, key: str) -> Delete:
    """Its request was refused and made nothing: the key is as if never used."""
    return delete(Key).where(Key.tenant_id == tenant_id, Key.key == key, Key.finished_at.is_(None))


def delete_key(tenant_id: str, key: str, kept: timedelta) -> Delete:
    """The key, if its time is over."""
    return delete(Key).where(Key.tenant_id == tenant_id, Key.key == key, Key.created_at < func.now() - kept)


def delete_old_keys(kept: timedelta) -> Delete:
    """All keys whose time is over."""
    return delete(Key).where(Key.created_at < func.now() - kept)
