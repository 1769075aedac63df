"""Batches, their shards, and validations of batch files."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, SmallInteger, func, literal_column, text
from sqlalchemy.orm import Mapped, mapped_column

from core.states import FINAL_BATCH_STATES, BatchState, ShardState
from db.tables.base import Base, one_of


class Batch(Base):
    """OpenAI's batch. Counts and tokens are complete once it has ended; before, those of its shards are to be added.

    `outcome` is the state that follows FINALIZING. `lines_failed` starts with the lines that prepare rejected. `key_id` is
    the key that created it; `queued_tokens` estimates the prompts of its lines, for that key's limit. `input_file_name` stays
    when the file is deleted. Every statement on a row moves `updated_at`; counts of shards do not. The lines of a mapped batch
    were made from the rows of `table_file_id` by the `mapping.spec.MapSpec` in `mapping_json`. `origin_json` is the
    `core.telemetry.origin.Origin` of the request that created it.
    """

    __tablename__ = "batches"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    key_id: Mapped[str | None]
    queued_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    endpoint: Mapped[str]
    model: Mapped[str | None]
    status: Mapped[BatchState] = mapped_column(server_default=BatchState.VALIDATING)
    outcome: Mapped[BatchState | None]
    input_file_id: Mapped[str]
    input_file_name: Mapped[str | None]
    output_file_id: Mapped[str | None]
    error_file_id: Mapped[str | None]
    completion_window: Mapped[str]
    window_seconds: Mapped[int] = mapped_column(Integer)
    output_expires_seconds: Mapped[int | None] = mapped_column(Integer)
    metadata_json: Mapped[str | None]
    parent_batch_id: Mapped[str | None] = mapped_column(ForeignKey("batches.id", ondelete="SET NULL"), index=True)
    table_file_id: Mapped[str | None]
    mapping_json: Mapped[str | None]
    origin_json: Mapped[str | None]
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    paused_at: Mapped[datetime | None]
    resumed_at: Mapped[datetime | None]
    errors_json: Mapped[str | None]
    lines: Mapped[int] = mapped_column(Integer, server_default="0")
    lines_completed: Mapped[int] = mapped_column(Integer, server_default="0")
    lines_failed: Mapped[int] = mapped_column(Integer, server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    dispatched_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    in_progress_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("status", BatchState), name="status"),
        CheckConstraint(
            f"({one_of('status', FINAL_BATCH_STATES)}) = "
            "(coalesce(completed_at, failed_at, expired_at, cancelled_at) IS NOT NULL)",
            name="final",
        ),
        CheckConstraint("(status <> 'finalizing') OR (outcome IS NOT NULL)", name="outcome"),
        CheckConstraint("lines_completed + lines_failed <= lines", name="counts"),
        CheckConstraint("priority BETWEEN -100 AND 100", name="priority"),
        CheckConstraint("(table_file_id IS NULL) = (mapping_json IS NULL)", name="mapping"),
        Index(None, "tenant_id", "id"),
        Index(None, "tenant_id", "updated_at"),
        Index(
            "ix_batches_metadata",
            literal_column("(metadata_json::jsonb)").label("pairs"),
            postgresql_using="gin",
            postgresql_ops={"pairs": "jsonb_path_ops"},
        ),
        Index(
            "ix_batches_open",
            "dispatched_at",
            postgresql_where=text(f"NOT ({one_of('status', FINAL_BATCH_STATES)})"),
        ),
        Index(
            "ix_batches_tenant_open",
            "tenant_id",
            postgresql_where=text(f"NOT ({one_of('status', FINAL_BATCH_STATES)})"),
        ),
        Index("ix_batches_table_file_id", "table_file_id", postgresql_where=text("table_file_id IS NOT NULL")),
        Index("ix_batches_measured", "model", "id", postgresql_where=text("status = 'completed'")),
    )


class Shard(Base):
    """A run of a batch's lines for one model, claimed under a lease.

    Each claim raises `fence`; only the holder of the current fence may write. `first_line` is the smallest number of its lines;
    None in batches of older versions.
    """

    __tablename__ = "shards"
    id: Mapped[str] = mapped_column(primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"), index=True)
    tenant_id: Mapped[str]
    model: Mapped[str]
    position: Mapped[int] = mapped_column(Integer)
    state: Mapped[ShardState] = mapped_column(server_default=ShardState.READY)
    owner: Mapped[str | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    lease_until: Mapped[datetime | None]
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    lines: Mapped[int] = mapped_column(Integer)
    first_line: Mapped[int | None] = mapped_column(Integer)
    lines_completed: Mapped[int] = mapped_column(Integer, server_default="0")
    lines_failed: Mapped[int] = mapped_column(Integer, server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")

    __table_args__ = (
        CheckConstraint(one_of("state", ShardState), name="state"),
        CheckConstraint("(state = 'running') = (owner IS NOT NULL AND lease_until IS NOT NULL)", name="lease"),
        CheckConstraint("lines_completed + lines_failed <= lines", name="counts"),
        Index("ix_shards_open", "batch_id", "model", "position", postgresql_where=text("state <> 'done'")),
        Index("ix_shards_owner", "owner", postgresql_where=text("state = 'running'")),
        Index("ix_shards_running", "tenant_id", postgresql_where=text("state = 'running'")),
    )


class Validation(Base):
    """A file validation: inserted by the api, claimed by a clerk, and deleted by the api once its result was read.

    The result is `report`, a `core.schemas.batch_validation.BatchValidation`, or `failure`, the reason why there is none.
    Until then, the clerk that has claimed it renews `claimed_until`.
    """

    __tablename__ = "validations"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    file_id: Mapped[str]
    endpoint: Mapped[str | None]
    report: Mapped[str | None]
    failure: Mapped[str | None]
    claimed_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)

    __table_args__ = (CheckConstraint("report IS NULL OR failure IS NULL", name="answer"),)
