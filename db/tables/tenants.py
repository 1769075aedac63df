"""Tenants, their API keys, usage and idempotency keys."""

from __future__ import annotations

from datetime import date, datetime
from typing import Final

from sqlalchemy import ARRAY, BigInteger, CheckConstraint, ForeignKey, String, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base

DEFAULT_TENANT: Final = "default"


class Tenant(Base):
    """The owner of files, batches and jobs. The single-machine default is one tenant called `default`.

    `open_batches` and `queued_lines` limit its batches that have not ended; NULL is no limit. `storage_bytes` limits its
    files; NULL is the limit of the settings.
    """

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    open_batches: Mapped[int | None] = mapped_column(BigInteger)
    queued_lines: Mapped[int | None] = mapped_column(BigInteger)
    storage_bytes: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (CheckConstraint("least(open_batches, queued_lines, storage_bytes) > 0", name="caps"),)


class ApiKey(Base):
    """A key of a tenant: only its digest is stored, and the `prefix` that may be shown.

    `models` lists the names of models that it may use; NULL is all. A limit of NULL is no limit, except in
    `calls_per_minute`: there it is the limit of the settings.
    """

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{inference,files}")
    models: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    requests_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    queued_tokens: Mapped[int | None] = mapped_column(BigInteger)
    concurrent_streams: Mapped[int | None] = mapped_column(BigInteger)
    calls_per_minute: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        CheckConstraint(
            "least(requests_per_minute, tokens_per_minute, queued_tokens, concurrent_streams, calls_per_minute) > 0",
            name="limits",
        ),
        CheckConstraint(
            "scopes <@ ARRAY['inference', 'files', 'read-only', 'admin'] AND cardinality(scopes) > 0", name="scopes"
        ),
    )


class UsageDaily(Base):
    """Tokens of a tenant, model, day (UTC) and key; raised in the transaction that ends a job.

    `key_id` is empty for requests without a key.
    """

    __tablename__ = "usage_daily"
    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(primary_key=True, server_default="")
    requests: Mapped[int] = mapped_column(BigInteger, server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")


class IdempotencyKey(Base):
    """An `Idempotency-Key` of a client: the fingerprint of one request, and the object that it makes.

    Inserted when the request begins, which holds it until `locked_until`; `finished_at` is set once the object exists.
    """

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str]
    object_id: Mapped[str]
    locked_until: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    finished_at: Mapped[datetime | None]
