"""Jobs, kept responses, and quarantined requests."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, SmallInteger, func, text
from sqlalchemy.orm import Mapped, mapped_column

from core.states import FINAL_JOB_STATES, JobState
from db.tables.base import Base, one_of


class Job(Base):
    """One generation: a request, or a line of a batch (then `batch_id`, `line` and `custom_id` are set).

    `key_id` is the key of a single request; lines have that of their batch.
    `body` has the schema of `endpoint` (see `core.schemas.endpoints`).
    `position` is the index of a line in the plan of its batch, and so in its shard; a line that prepare rejected has neither.
    `model_parameters` is JSON: the sampling parameters of the model file (see `core.schemas.generation`).
    `answer` is the whole response body, `problem` a `core.errors.Problem`. A job that is no line has its own lease.
    `origin_json` is the `core.telemetry.origin.Origin` of a single request; lines have that of their batch.
    `finish_xact` is the transaction that ended a line (see `db.batch_results`); every statement that ends lines sets it.
    `crashes` counts crashes that a line is suspected of: those it was in, and, once it runs alone, each run without an end.
    """

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    key_id: Mapped[str | None]
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    shard_id: Mapped[str | None]
    position: Mapped[int | None] = mapped_column(Integer)
    line: Mapped[int | None] = mapped_column(Integer)
    custom_id: Mapped[str | None]
    model: Mapped[str]
    state: Mapped[JobState] = mapped_column(server_default=JobState.QUEUED)
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    owner: Mapped[str | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    lease_until: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    crashes: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    endpoint: Mapped[str] = mapped_column(server_default="/v1/chat/completions")
    origin_json: Mapped[str | None]
    body: Mapped[str]
    answer: Mapped[str | None]
    problem: Mapped[str | None]
    prompt_tokens: Mapped[int | None] = mapped_column(Integer)
    completion_tokens: Mapped[int | None] = mapped_column(Integer)
    cached_tokens: Mapped[int | None] = mapped_column(Integer)
    reasoning_tokens: Mapped[int | None] = mapped_column(Integer)
    engine_build: Mapped[str | None]
    model_hash: Mapped[str | None]
    settings_hash: Mapped[str | None]
    template_hash: Mapped[str | None]
    model_parameters: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    dispatched_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    finish_xact: Mapped[int | None] = mapped_column(
        BigInteger, server_default=text("((pg_current_xact_id())::text)::bigint")
    )

    __table_args__ = (
        CheckConstraint(one_of("state", JobState), name="state"),
        CheckConstraint(f"({one_of('state', FINAL_JOB_STATES)}) = (finished_at IS NOT NULL)", name="final"),
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
        Index(
            "ix_jobs_key_open",
            "key_id",
            postgresql_where=text("state IN ('queued', 'running') AND key_id IS NOT NULL"),
        ),
        Index("ix_jobs_batch_custom_id", "batch_id", "custom_id", postgresql_where=text("batch_id IS NOT NULL")),
        Index(
            "ix_jobs_batch_finished",
            "batch_id",
            "finish_xact",
            "line",
            postgresql_where=text("batch_id IS NOT NULL AND finished_at IS NOT NULL"),
        ),
        Index(
            "ix_jobs_batch_unanswered",
            "batch_id",
            "line",
            postgresql_where=text("batch_id IS NOT NULL AND state IN ('failed', 'cancelled', 'expired')"),
        ),
        Index(
            "ix_jobs_batch_state",
            "batch_id",
            "state",
            "line",
            postgresql_where=text("batch_id IS NOT NULL AND state IN ('failed', 'cancelled', 'expired')"),
        ),
    )


class Response(Base):
    """A stored `/v1/responses` request, and the response it goes on from; deleted with its job, which has the answer.

    `request` is the body without its input, `input_items` its items with new ids. The end of a response that
    `is_background` is sent to webhooks.
    """

    __tablename__ = "responses"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    previous_id: Mapped[str | None]
    model: Mapped[str]
    request: Mapped[str]
    input_items: Mapped[str]
    is_background: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class StoredChat(Base):
    """A chat completion that is kept by `store`; deleted with its job, which has the request and the answer."""

    __tablename__ = "stored_chats"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[str]
    model: Mapped[str]
    metadata_json: Mapped[str]

    __table_args__ = (Index(None, "tenant_id", "job_id"),)


class Quarantine(Base):
    """A request that an engine was running when it crashed; deleted after it ran alone without a crash, or with time.

    `crashes` counts crashes in which it ran alone; enough of them set `blocked_at`, and block it until it is deleted.
    """

    __tablename__ = "quarantine"
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    model: Mapped[str]
    endpoint: Mapped[str]
    job_id: Mapped[str]
    crashes: Mapped[int] = mapped_column(SmallInteger)
    crashed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    blocked_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("crashes >= 0", name="crashes"), Index(None, "tenant_id", "model"))
