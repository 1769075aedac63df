"""Statements on file rows. The bytes are in the file store."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    Insert,
    Select,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, aliased
from sqlalchemy.sql.dml import ReturningUpdate

from core.states import FINAL_BATCH_STATES
from db.query import Query, columns_of, total
from db.tables import Batch, File, Tenant, Upload


class FileRow(NamedTuple):
    """A stored file."""

    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: datetime
    expires_at: datetime | None


class StorageRow(NamedTuple):
    """`limit_bytes` of None is no limit; then `used_bytes` is not counted, and 0."""

    limit_bytes: int | None
    used_bytes: int


_FILE = columns_of(File, FileRow)


def insert_file(**columns: Any) -> Query[FileRow]:  # Any: the columns' own types
    """Insert a file, after its content was stored."""
    return Query(add_file(**columns).returning(*_FILE), FileRow)


def add_file(**columns: Any) -> Insert:  # Any: the columns' own types
    """Insert a file as `insert_file` does, and return nothing."""
    return insert(File).values(**columns)


def find_file(file_id: str, tenant_id: str) -> Query[FileRow]:
    """Find a file of this tenant that is neither deleted nor expired."""
    return Query(select(*_FILE).where(File.id == file_id, _visible(tenant_id)), FileRow)


def list_files(
    tenant_id: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
) -> Query[FileRow]:
    """List a page of files that begins behind `after`; ids sort by time."""
    statement = select(*_FILE).where(_visible(tenant_id))
    if purpose is not None:
        statement = statement.where(File.purpose == purpose)
    if after is not None:
        statement = statement.where(File.id < after if newest_first else File.id > after)
    return Query(statement.order_by(File.id.desc() if newest_first else File.id).limit(limit), FileRow)


def hide_file(file_id: str, tenant_id: str) -> ReturningUpdate[str]:
    """Delete a file for its tenant; the bytes follow when no open batch reads them."""
    return update(File).where(File.id == file_id, _visible(tenant_id)).values(deleted_at=func.now()).returning(File.id)


def hide_expired_files() -> ReturningUpdate[str]:
    """Delete files past their `expires_at` in the same way; a table stays for as long as the results of its batches."""
    results = aliased(File)
    has_results = exists().where(
        results.id.in_((Batch.output_file_id, Batch.error_file_id)), _visible(Batch.tenant_id, results)
    )
    is_needed = or_(Batch.status.not_in(FINAL_BATCH_STATES), has_results)
    is_table = exists().where(Batch.table_file_id == File.id, is_needed)
    return (
        update(File)
        .where(File.deleted_at.is_(None), File.expires_at < func.now(), ~is_table)
        .values(deleted_at=func.now())
        .returning(File.id)
    )


def stored_bytes(tenant_id: str, default_limit: int | None) -> Query[StorageRow]:
    """Return the storage limit of a tenant (its own, else the default), and what it uses of it.

    Uses are the bytes of its files and those announced for uploads that may still be completed. No row: unknown tenant.
    """
    limit = func.coalesce(Tenant.storage_bytes, cast(default_limit, BigInteger))
    is_pending = (Upload.status == "pending") & (Upload.expires_at > func.now())
    stored = select(total(File.bytes)).where(_visible(tenant_id)).scalar_subquery()
    announced = select(total(Upload.bytes)).where(Upload.tenant_id == tenant_id, is_pending).scalar_subquery()
    used = case((limit.is_not(None), stored + announced), else_=0)
    statement = select(limit.label("limit_bytes"), used.label("used_bytes")).where(Tenant.id == tenant_id)
    return Query(statement, StorageRow)


def removable_files(limit: int) -> Select[str]:
    """List hidden files that no open batch reads: their bytes and rows may go."""
    in_use = exists().where(Batch.input_file_id == File.id, Batch.status.not_in(FINAL_BATCH_STATES))
    return select(File.id).where(File.deleted_at.is_not(None), ~in_use).limit(limit)


def delete_files(file_ids: list[str]) -> Delete:
    """Delete rows of hidden files, after their bytes were deleted."""
    return delete(File).where(File.id.in_(file_ids), File.deleted_at.is_not(None))


def known_files(file_ids: list[str]) -> Select[str]:
    """Return those of the ids that have a row, hidden or not."""
    return select(File.id).where(File.id.in_(file_ids))


def table_name(file_id: str) -> Select[str]:
    """Return the file name of a batch's table. No row: it was deleted, or has expired with the results of its batches."""
    return select(File.filename).where(File.id == file_id, File.deleted_at.is_(None))


def _visible(tenant_id: str | InstrumentedAttribute[str], file: type[File] = File) -> ColumnElement[bool]:
    is_current = file.expires_at.is_(None) | (file.expires_at > func.now())
    return (file.tenant_id == tenant_id) & file.deleted_at.is_(None) & is_current
