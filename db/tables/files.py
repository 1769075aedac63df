"""Stored files, and uploads in parts."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, String, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, one_of

UPLOAD_STATUSES: Final = ("pending", "completed", "cancelled", "expired")


class File(Base):
    """A stored file: inserted by an upload or by finalize, hidden by a delete or at `expires_at`.

    `deleted_at` hides it; the bytes are deleted when no open batch needs them.
    """

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    purpose: Mapped[str]
    filename: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint("bytes >= 0", name="bytes"),
        Index(None, "tenant_id", "id"),
        Index("ix_files_expires_at", "expires_at", postgresql_where=text("deleted_at IS NULL")),
    )


class Upload(Base):
    """A large file that arrives in parts: `pending` until it is completed, cancelled, or expired at `expires_at`.

    `file_id` is the file of a completed upload, and `file_expires_seconds` the lifetime of that file.
    """

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(server_default="pending")
    purpose: Mapped[str]
    filename: Mapped[str] = mapped_column(String(255))
    mime_type: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)
    file_expires_seconds: Mapped[int | None] = mapped_column(Integer)
    file_id: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint(one_of("status", UPLOAD_STATUSES), name="status"),
        CheckConstraint("(status = 'completed') = (file_id IS NOT NULL)", name="file"),
        CheckConstraint("bytes > 0", name="bytes"),
        Index("ix_uploads_pending", "expires_at", postgresql_where=text("status = 'pending'")),
        Index("ix_uploads_tenant_pending", "tenant_id", postgresql_where=text("status = 'pending'")),
    )


class UploadPart(Base):
    """A part of an upload; its bytes are in the store under the part's id until the upload has ended."""

    __tablename__ = "upload_parts"
    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint("bytes >= 0", name="bytes"),)
