"""Statements on uploads in parts. The status of an upload changes once, by one conditional UPDATE."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Delete, Select, delete, exists, func, insert, literal, select, update
from sqlalchemy.sql.dml import ReturningUpdate

from db.query import Query, columns_of, total
from db.tables import Upload, UploadPart

_PENDING = Upload.status == "pending"


class UploadRow(NamedTuple):
    """A large file that arrives in parts."""

    id: str
    status: str
    purpose: str
    filename: str
    bytes: int
    file_expires_seconds: int | None
    file_id: str | None
    created_at: datetime
    expires_at: datetime


class PartRow(NamedTuple):
    """A part of an upload."""

    id: str
    bytes: int
    created_at: datetime


_UPLOAD = columns_of(Upload, UploadRow)
_PART = columns_of(UploadPart, PartRow)


def insert_upload(*, lifetime: timedelta, **columns: Any) -> Query[UploadRow]:  # Any: the columns' own types
    """Insert an upload that waits for its parts."""
    statement = insert(Upload).values(expires_at=func.now() + lifetime, **columns)
    return Query(statement.returning(*_UPLOAD), UploadRow)


def find_upload(upload_id: str, tenant_id: str) -> Query[UploadRow]:
    """Find an upload of this tenant, in any status."""
    return Query(select(*_UPLOAD).where(Upload.id == upload_id, Upload.tenant_id == tenant_id), UploadRow)


def insert_part(part_id: str, upload_id: str, size: int) -> Query[PartRow]:
    """Insert a part, after its bytes were stored. No row: the upload has ended meanwhile."""
    source = select(literal(part_id), Upload.id, literal(size)).where(
        Upload.id == upload_id, _PENDING, Upload.expires_at > func.now()
    )
    statement = insert(UploadPart).from_select(["id", "upload_id", "bytes"], source).returning(*_PART)
    return Query(statement, PartRow)


def parts_of(upload_id: str) -> Query[PartRow]:
    """List the parts of an upload."""
    return Query(select(*_PART).where(UploadPart.upload_id == upload_id), PartRow)


def pending_bytes(tenant_id: str) -> Select[int]:
    """Sum up the bytes of the parts of a tenant's uploads that may still be completed."""
    parts = select(total(UploadPart.bytes)).join(Upload, Upload.id == UploadPart.upload_id)
    return parts.where(Upload.tenant_id == tenant_id, _PENDING, Upload.expires_at > func.now())


def end_upload(upload_id: str, status: str, file_id: str | None = None) -> Query[UploadRow]:
    """Set an upload to `completed` with its file, or to `cancelled`. No row: it has ended already."""
    change = update(Upload).where(Upload.id == upload_id, _PENDING).values(status=status, file_id=file_id)
    return Query(change.returning(*_UPLOAD), UploadRow)


def expire_uploads() -> ReturningUpdate[str]:
    """Expire uploads that were not completed in time."""
    late = update(Upload).where(_PENDING, Upload.expires_at < func.now())
    return late.values(status="expired").returning(Upload.id)


def removable_parts(limit: int) -> Select[str]:
    """List parts of uploads that have ended: their bytes and rows may go."""
    ended = select(UploadPart.id).join(Upload, Upload.id == UploadPart.upload_id).where(Upload.status != "pending")
    return ended.limit(limit)


def delete_parts(part_ids: list[str]) -> Delete:
    """Delete rows of parts, after their bytes were deleted."""
    return delete(UploadPart).where(UploadPart.id.in_(part_ids))


def known_parts(part_ids: list[str]) -> Select[str]:
    """Return those of the ids that have a row."""
    return select(UploadPart.id).where(UploadPart.id.in_(part_ids))


def delete_old_uploads(kept: timedelta) -> Delete:
    """Delete rows of uploads that ended long ago and have no parts left."""
    has_parts = exists().where(UploadPart.upload_id == Upload.id)
    return delete(Upload).where(Upload.status != "pending", Upload.created_at < func.now() - kept, ~has_parts)
