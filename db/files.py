"""Statements on file rows. The bytes are the file store's."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Delete, Insert, Select, case, cast, delete, exists, func, insert, select, update

from core.states import FINAL_BATCH_STATES
from db.tables import Batch, File, Tenant, Upload


def insert_file(**columns: Any) -> Any:  # Any: the columns' own types; ReturningInsert
    """A file whose content is in the store already."""
    return insert(File).values(**columns).returning(File)


def add_file(**columns: Any) -> Insert:  # Any: the columns' own types
    """The same, for those who need nothing back."""
    return insert(File).values(**columns)


def _visible(tenant_id: str) -> Any:  # Any: a SQL condition
    return (
        (File.tenant_id == tenant_id)
        & File.deleted_at.is_(None)
        & (File.expires_at.is_(None) | (File.expires_at > func.now()))
    )


def find_file(file_id: str, tenant_id: str) -> Select[File]:
    """A file of this tenant that is neither deleted nor expired."""
    return select(File).where(File.id == file_id, _visible(tenant_id))


def list_files(
    tenant_id: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
) -> Select[File]:
    """A page from behind `after`; ids sort by time."""
    query = select(File).where(_visible(tenant_id))
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    if after is not None:
        query = query.where(File.id < after if newest_first else File.id > after)
    return query.order_by(File.id.desc() if newest_first else File.id).limit(limit)


def hide_file(file_id: str, tenant_id: str) -> Any:  # Any: ReturningUpdate
    """Delete for the tenant; the bytes follow when no open batch reads them."""
    return update(File).where(File.id == file_id, _visible(tenant_id)).values(deleted_at=func.now()).returning(File.id)


def hide_expired_files() -> Any:  # Any: ReturningUpdate
    """Files past their time."""
    return (
        update(File)
        .where(File.deleted_at.is_(None), File.expires_at < func.now())
        .values(deleted_at=func.now())
        .returning(File.id)
    )


def stored_bytes(tenant_id: str, default_cap: int | None) -> Select[int | None, int]:
    """What a tenant may store (its own cap, else the default; None is no cap), and what it does: counted only if capped.

    Bytes of files, and those that were announced for uploads which may still be completed.
    """
    cap = func.coalesce(Tenant.storage_bytes, cast(default_cap, BigInteger))
    is_pending = (Upload.status == "pending") & (Upload.expires_at > func.now())
    stored = select(func.coalesce(func.sum(File.bytes), 0)).where(_visible(tenant_id))
    announced = select(func.coalesce(func.sum(Upload.bytes), 0)).where(Upload.tenant_id == tenant_id, is_pending)
    total = stored.scalar_subquery() + announced.scalar_subquery()
    return select(cap, case((cap.is_not(None), total), else_=0)).where(Tenant.id == tenant_id)


def removable_files(limit: int) -> Select[str]:
    """Hidden files that no open batch reads: their bytes and rows may go."""
    in_use = exists().where(Batch.input_file_id == File.id, Batch.status.not_in(FINAL_BATCH_STATES))
    return select(File.id).where(File.deleted_at.is_not(None), ~in_use).limit(limit)


def delete_files(file_ids: list[str]) -> Delete:
    """Rows of files whose bytes are gone."""
    return delete(File).where(File.id.in_(file_ids), File.deleted_at.is_not(None))


def known_files(file_ids: list[str]) -> Select[str]:
    """Those of the ids that have a row, hidden or not."""
    return select(File.id).where(File.id.in_(file_ids))
