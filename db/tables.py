"""The tables, and what is always true of their rows.

Bodies and answers are text: jsonb drops key order and refuses some of what a model may say. Every row
names its tenant.
`jobs` refers to its batch only: foreign keys to tenants and shards would cost each copied line two lookups more.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Text,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from core.states import FINAL_BATCH_STATES, FINAL_JOB_STATES, BatchState, JobState, ShardState

DEFAULT_TENANT: Final = "default"

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Text columns and timestamps with a zone, everywhere."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: Final[dict[Any, Any]] = {  # Any: SQLAlchemy's own signature
        str: Text(),
        datetime: DateTime(timezone=True),
        JobState: Text(),
        BatchState: Text(),
        ShardState: Text(),
    }


def _one_of(column: str, values: type[JobState] | type[BatchState] | type[ShardState] | tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class Tenant(Base):
    """Who owns files, batches and jobs. The single-machine default is one tenant called `default`."""

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Base):
    """A key of a tenant: only its digest is kept; `prefix` is what may be shown again."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    prefix: Mapped[str]
    digest: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class File(Base):
    """A stored file: entered by an upload or by finalize, left by a delete or at `expires_at`.

    `deleted_at` hides it; the bytes go when no batch needs them any more.
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


class Batch(Base):
    """OpenAI's batch. Counts and tokens are of the whole batch once it has ended; before, add those of its shards.

    `outcome` is what FINALIZING leads to. `lines_failed` starts with the lines prepare refused.
    """

    __tablename__ = "batches"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    endpoint: Mapped[str]
    model: Mapped[str | None]
    status: Mapped[BatchState] = mapped_column(server_default=BatchState.VALIDATING)
    outcome: Mapped[BatchState | None]
    input_file_id: Mapped[str]
    output_file_id: Mapped[str | None]
    error_file_id: Mapped[str | None]
    completion_window: Mapped[str]
    window_seconds: Mapped[int] = mapped_column(Integer)
    output_expires_seconds: Mapped[int | None] = mapped_column(Integer)
    metadata_json: Mapped[str | None]
    errors_json: Mapped[str | None]
    lines: Mapped[int] = mapped_column(Integer, server_default="0")
    lines_completed: Mapped[int] = mapped_column(Integer, server_default="0")
    lines_failed: Mapped[int] = mapped_column(Integer, server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    dispatched_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    in_progress_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(_one_of("status", BatchState), name="status"),
        CheckConstraint(
            f"({_one_of('status', FINAL_BATCH_STATES)}) = "
            "(coalesce(completed_at, failed_at, expired_at, cancelled_at) IS NOT NULL)",
            name="final",
        ),
        CheckConstraint("(status <> 'finalizing') OR (outcome IS NOT NULL)", name="outcome"),
        CheckConstraint("lines_completed + lines_failed <= lines", name="counts"),
        Index(None, "tenant_id", "id"),
        Index(
            "ix_batches_open",
            "dispatched_at",
            postgresql_where=text(f"NOT ({_one_of('status', FINAL_BATCH_STATES)})"),
        ),
        Index("ix_batches_measured", "model", "id", postgresql_where=text("status = 'completed'")),
    )


class Shard(Base):
    """A run of a batch's lines for one model, taken under a lease.

    Each claim raises `fence`; only its holder may write.
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
    lines_completed: Mapped[int] = mapped_column(Integer, server_default="0")
    lines_failed: Mapped[int] = mapped_column(Integer, server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")

    __table_args__ = (
        CheckConstraint(_one_of("state", ShardState), name="state"),
        CheckConstraint("(state = 'running') = (owner IS NOT NULL AND lease_until IS NOT NULL)", name="lease"),
        CheckConstraint("lines_completed + lines_failed <= lines", name="counts"),
        Index("ix_shards_open", "batch_id", "model", "position", postgresql_where=text("state <> 'done'")),
        Index("ix_shards_owner", "owner", postgresql_where=text("state = 'running'")),
        Index("ix_shards_running", "tenant_id", postgresql_where=text("state = 'running'")),
    )


class Job(Base):
    """One generation: a chat request, or one line of a batch (then `batch_id`, `line` and `custom_id` are set).

    `position` is a line's place in its batch's plan, and so in its shard; a line that prepare refused has neither.
    `answer` is the whole response body, `problem` the stored `core.errors.Problem`. A chat job holds its own lease.
    """

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    shard_id: Mapped[str | None]
    position: Mapped[int | None] = mapped_column(Integer)
    line: Mapped[int | None] = mapped_column(Integer)
    custom_id: Mapped[str | None]
    model: Mapped[str]
    state: Mapped[JobState] = mapped_column(server_default=JobState.QUEUED)
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    owner: Mapped[str | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    lease_until: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    body: Mapped[str]
    answer: Mapped[str | None]
    problem: Mapped[str | None]
    prompt_tokens: Mapped[int | None] = mapped_column(Integer)
    completion_tokens: Mapped[int | None] = mapped_column(Integer)
    cached_tokens: Mapped[int | None] = mapped_column(Integer)
    engine_build: Mapped[str | None]
    model_hash: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    dispatched_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    first_token_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(_one_of("state", JobState), name="state"),
        CheckConstraint(f"({_one_of('state', FINAL_JOB_STATES)}) = (finished_at IS NOT NULL)", name="final"),
        CheckConstraint("(state = 'completed') = (answer IS NOT NULL)", name="answer"),
        CheckConstraint("(state IN ('failed', 'expired')) <= (problem IS NOT NULL)", name="problem"),
        CheckConstraint("(state = 'running') = (owner IS NOT NULL AND lease_until IS NOT NULL)", name="lease"),
        CheckConstraint(
            "(batch_id IS NULL) = (line IS NULL) AND (batch_id IS NULL) = (custom_id IS NULL)", name="batch_line"
        ),
        CheckConstraint("(shard_id IS NULL) = (position IS NULL)", name="position"),
        Index("uq_jobs_batch_id_line", "batch_id", "line", unique=True, postgresql_where=text("batch_id IS NOT NULL")),
        Index(
            "ix_jobs_shard_queue",
            "shard_id",
            "position",
            postgresql_where=text("state = 'queued' AND shard_id IS NOT NULL"),
        ),
        Index(
            "ix_jobs_chat_queue", "model", "created_at", postgresql_where=text("state = 'queued' AND batch_id IS NULL")
        ),
        Index("ix_jobs_running", "owner", postgresql_where=text("state = 'running'")),
    )


class Webhook(Base):
    """An address that is told when a batch ends."""

    __tablename__ = "webhooks"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    url: Mapped[str]
    secret: Mapped[str]
    events: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    disabled_at: Mapped[datetime | None]


class Validation(Base):
    """A question of somebody who waits: what is wrong with this file? Entered by the api, which removes it once answered.

    `report` is a clerk's answer: a `core.wire.batch_validation.BatchValidation`; or `failure`, why there is none.
    """

    __tablename__ = "validations"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    file_id: Mapped[str]
    endpoint: Mapped[str | None]
    report: Mapped[str | None]
    failure: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)

    __table_args__ = (CheckConstraint("report IS NULL OR failure IS NULL", name="answer"),)


class UsageDaily(Base):
    """Tokens of a tenant, model and day (UTC): raised in the transaction that ends a job."""

    __tablename__ = "usage_daily"
    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger, server_default="0")
    prompt_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    completion_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
