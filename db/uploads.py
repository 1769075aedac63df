"""Statements on uploads in parts. An upload's status changes once, by one conditional UPDATE."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Delete, Select, delete, exists, func, insert, literal, select, update

from db.tables import Upload, UploadPart

_PENDING = Upload.status == "pending"


def insert_upload(*, lifetime: timedelta, **columns: Any) -> Any:  # Any: the columns' own types; ReturningInsert
    """An upload that waits for its parts."""
    return insert(Upload).values(expires_at=func.now() + lifetime, **columns).returning(Upload)


def find_upload(upload_id: str, tenant_id: str) -> Select[Upload]:
    """An upload of this tenant, whatever became of it."""
    return select(Upload).where(Upload.id == upload_id, Upload.tenant_id == tenant_id)


def insert_part(part_id: str, upload_id: str, size: int) -> Any:  # Any: ReturningInsert
    """A part whose bytes are in the store; no row when the upload has ended meanwhile."""
    source = select(literal(part_id), Upload.id, literal(size)).where(
        Upload.id == upload_id, _PENDING, Upload.expires_at > func.now()
    )
    return insert(UploadPart).from_select(["id", "upload_id", "bytes"], source).returning(UploadPart)


def parts_of(upload_id: str) -> Select[str, int]:
    """Ids and sizes."""
    return select(UploadPart.id, UploadPart.bytes).where(UploadPart.upload_id == upload_id)


def pending_bytes(tenant_id: str) -> Select[int]:
    """Bytes of the parts of a tenant's uploads that may still be completed."""
    parts = select(func.coalesce(func.sum(UploadPart.bytes), 0)).join(Upload, Upload.id == UploadPart.upload_id)
    return parts.where(Upload.tenant_id == tenant_id, _PENDING, Upload.expires_at > func.now())


def end_upload(upload_id: str, status: str, file_id: str | None = None) -> Any:  # Any: ReturningUpdate
    """`completed` with its file, or `cancelled`; no row when it has ended already."""
    change = update(Upload).where(Upload.id == upload_id, _PENDING)
    return change.values(status=status, file_id=file_id).returning(Upload)


def expire_uploads() -> Any:  # Any: ReturningUpdate
    """Uploads nobody completed in time."""
    late = update(Upload).where(_PENDING, Upload.expires_at < func.now())
    return late.values(status="expired").returning(Upload.id)


def removable_parts(limit: int) -> Select[str]:
    """Parts of uploads that have ended: their bytes and rows may go."""
    ended = select(UploadPart.id).join(Upload, Upload.id == UploadPart.upload_id).where(Upload.status != "pending")
    return ended.limit(limit)


def delete_parts(part_ids: list[str]) -> Delete:
    """Rows of parts whose bytes are gone."""
    return delete(UploadPart).where(UploadPart.id.in_(part_ids))


def known_parts(part_ids: list[str]) -> Select[str]:
    """Those of the ids that have a row."""
    return select(UploadPart.id).where(UploadPart.id.in_(part_ids))


def delete_old_uploads(kept: timedelta) -> Delete:
    """Rows of uploads that ended long ago; their parts went before."""
    has_parts = exists().where(UploadPart.upload_id == Upload.id)
    return delete(Upload).where(Upload.status != "pending", Upload.created_at < func.now() - kept, ~has_parts)
