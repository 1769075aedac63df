"""The tables, and what is always true of their rows.

Bodies and answers are text: jsonb drops key order and refuses some of what a model may say. Every row
names its tenant.
`jobs` refers to its batch only: foreign keys to tenants and shards would cost each copied line two lookups more.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
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
UPLOAD_STATUSES: Final = ("pending", "completed", "cancelled", "expired")
WORKER_KINDS: Final = ("chat", "batch", "clerk", "launcher")

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
    """Who owns files, batches and jobs. The single-machine default is one tenant called `default`.

    `open_batches` and `queued_lines` cap what it may have waiting at a time; NULL is no cap. `storage_bytes` caps its files;
    NULL is the cap of the settings.
    """

    __tablename__ = "tenants"
    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    open_batches: Mapped[int | None] = mapped_column(BigInteger)
    queued_lines: Mapped[int | None] = mapped_column(BigInteger)
    storage_bytes: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (CheckConstraint("least(open_batches, queued_lines, storage_bytes) > 0", name="caps"),)


class ApiKey(Base):
    """A key of a tenant: only its digest is kept; `prefix` is what may be shown again.

    `models` lists the names of those it may use, NULL is all of them; a limit that is NULL is none, but for
    `calls_per_minute`: that of the settings.
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


class Upload(Base):
    """A big file on its way in, in parts: `pending` until it is completed, cancelled, or `expires_at` has come.

    `file_id` is the file it became, if it did; `file_expires_seconds` is how long that one shall live.
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
        CheckConstraint(_one_of("status", UPLOAD_STATUSES), name="status"),
        CheckConstraint("(status = 'completed') = (file_id IS NOT NULL)", name="file"),
        CheckConstraint("bytes > 0", name="bytes"),
        Index("ix_uploads_pending", "expires_at", postgresql_where=text("status = 'pending'")),
        Index("ix_uploads_tenant_pending", "tenant_id", postgresql_where=text("status = 'pending'")),
    )


class UploadPart(Base):
    """Bytes of an upload, in the store under the part's id until the upload has ended."""

    __tablename__ = "upload_parts"
    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint("bytes >= 0", name="bytes"),)


class IdempotencyKey(Base):
    """What a client's `Idempotency-Key` stands for: one request, by its fingerprint, and the object it makes.

    Entered when the request begins, which holds it until `locked_until`; `finished_at` says that the object was made.
    """

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str]
    object_id: Mapped[str]
    locked_until: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    finished_at: Mapped[datetime | None]


class Batch(Base):
    """OpenAI's batch. Counts and tokens are of the whole batch once it has ended; before, add those of its shards.

    `outcome` is what FINALIZING leads to. `lines_failed` starts with the lines prepare refused. `key_id` is the key that made
    it; `queued_tokens` estimates the prompts of its lines, for that key's limit.
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
    output_file_id: Mapped[str | None]
    error_file_id: Mapped[str | None]
    completion_window: Mapped[str]
    window_seconds: Mapped[int] = mapped_column(Integer)
    output_expires_seconds: Mapped[int | None] = mapped_column(Integer)
    metadata_json: Mapped[str | None]
    parent_batch_id: Mapped[str | None] = mapped_column(ForeignKey("batches.id", ondelete="SET NULL"), index=True)
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
        CheckConstraint("priority BETWEEN -100 AND 100", name="priority"),
        Index(None, "tenant_id", "id"),
        Index(
            "ix_batches_open",
            "dispatched_at",
            postgresql_where=text(f"NOT ({_one_of('status', FINAL_BATCH_STATES)})"),
        ),
        Index(
            "ix_batches_tenant_open",
            "tenant_id",
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
    reasoning_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")

    __table_args__ = (
        CheckConstraint(_one_of("state", ShardState), name="state"),
        CheckConstraint("(state = 'running') = (owner IS NOT NULL AND lease_until IS NOT NULL)", name="lease"),
        CheckConstraint("lines_completed + lines_failed <= lines", name="counts"),
        Index("ix_shards_open", "batch_id", "model", "position", postgresql_where=text("state <> 'done'")),
        Index("ix_shards_owner", "owner", postgresql_where=text("state = 'running'")),
        Index("ix_shards_running", "tenant_id", postgresql_where=text("state = 'running'")),
    )


class Job(Base):
    """One generation: a request, or one line of a batch (then `batch_id`, `line` and `custom_id` are set).

    `key_id` is the key of a chat request; a line's is its batch's.

    `body` is one of `endpoint`'s (see `core.wire.endpoints`).
    `position` is a line's place in its batch's plan, and so in its shard; a line that prepare refused has neither.
    `model_parameters` is JSON: what the model's file filled in where the body says nothing (see `core.wire.parameters`).
    `answer` is the whole response body, `problem` the stored `core.errors.Problem`. A chat job holds its own lease.
    `finish_xact` is the transaction that ended a line (see `db.batch_results`); who ends lines sets it along.
    `crashes` counts what a line is suspected for: crashes it was in, and, once it runs alone, runs that may have been one.
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
    priority: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    owner: Mapped[str | None]
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    lease_until: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    crashes: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    endpoint: Mapped[str] = mapped_column(server_default="/v1/chat/completions")
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
    first_token_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    finish_xact: Mapped[int | None] = mapped_column(
        BigInteger, server_default=text("((pg_current_xact_id())::text)::bigint")
    )

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
    )


class Webhook(Base):
    """An address that is told of events. `events` are their types, separated by commas.

    The secret signs what is sent, so it is kept as it is. After a rotation the old one may sign along for a while.
    `failing_since` is the first of the failures since the last success; `last_error` is the latest of them.
    """

    __tablename__ = "webhooks"
    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(server_default="")
    url: Mapped[str]
    secret: Mapped[str]
    old_secret: Mapped[str | None]
    old_secret_until: Mapped[datetime | None]
    events: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    failing_since: Mapped[datetime | None]
    last_error: Mapped[str | None]
    events_delivered: Mapped[int] = mapped_column(BigInteger, server_default="0")
    events_given_up: Mapped[int] = mapped_column(BigInteger, server_default="0")

    __table_args__ = (
        CheckConstraint("(old_secret IS NULL) = (old_secret_until IS NULL)", name="old_secret"),
        CheckConstraint("(failing_since IS NULL) = (last_error IS NULL)", name="failing"),
    )


class WebhookDelivery(Base):
    """An event that an endpoint is to be told: entered in the transaction in which it happens, ended once.

    Whoever sends it moves `due_at` on by a lease and takes the next `attempt`, which fences what others would write.
    A test is sent once and says nothing about its endpoint.
    """

    __tablename__ = "webhook_deliveries"
    event_id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True, index=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)
    event_type: Mapped[str]
    payload: Mapped[str]
    is_test: Mapped[bool] = mapped_column(server_default=text("false"))
    attempt: Mapped[int] = mapped_column(Integer, server_default="0")
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    status_code: Mapped[int | None] = mapped_column(Integer)
    last_error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
    is_delivered: Mapped[bool] = mapped_column(server_default=text("false"))

    __table_args__ = (
        CheckConstraint("NOT is_delivered OR finished_at IS NOT NULL", name="delivered"),
        Index("ix_webhook_deliveries_due", "due_at", postgresql_where=text("finished_at IS NULL")),
        Index("ix_webhook_deliveries_finished", "finished_at"),
    )


class Validation(Base):
    """A question of somebody who waits: what is wrong with this file? Entered by the api, which removes it once answered.

    `report` is a clerk's answer: a `core.wire.batch_validation.BatchValidation`; or `failure`, why there is none. Until then a
    clerk that is at it moves `claimed_until` on.
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


class UsageDaily(Base):
    """Tokens of a tenant, model, day (UTC) and key: raised in the transaction that ends a job.

    `key_id` is empty where no key was needed.
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


class Response(Base):
    """A kept `/v1/responses` request: what was asked of a job, and which response it goes on from. Gone with its job.

    The answer is the job's. `request` is the body without its input, `input_items` its items under their own ids.
    The end of one that `is_background` is told to webhooks.
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


class Worker(Base):
    """A process that works: a consumer of tickets, or the launcher of a device's engines. Entered and renewed by itself with
    its heartbeat, left when it stops in order; the clerk removes what has been silent for long.

    `last_poll_at`: it looked for work itself, with or without finding any, and the database answered.
    """

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_poll_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint(_one_of("kind", WORKER_KINDS), name="kind"),)


class WorkerEngine(Base):
    """An engine as one process knows it: a consumer hears its ticks, its launcher sees it die."""

    __tablename__ = "worker_engines"
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    last_tick_at: Mapped[datetime | None]
    num_deaths: Mapped[int] = mapped_column(Integer, server_default="0")
    last_words: Mapped[str | None]


class Counter(Base):
    """What the processes without a port have counted, ever: each adds what is new with its heartbeat.

    `model` is empty where the count is of none.
    """

    __tablename__ = "counters"
    name: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True, server_default="")
    value: Mapped[int] = mapped_column(BigInteger, server_default="0")


class Quarantine(Base):
    """A request that an engine was at when it died: entered with that crash, left when it ran alone unharmed, or with time.

    `crashes` are those in which it was alone; with enough of them it is convicted, and refused for as long as it is here.
    """

    __tablename__ = "quarantine"
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    model: Mapped[str]
    endpoint: Mapped[str]
    job_id: Mapped[str]
    crashes: Mapped[int] = mapped_column(SmallInteger)
    crashed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    convicted_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint("crashes >= 0", name="crashes"), Index(None, "tenant_id", "model"))


class EngineCrash(Base):
    """An engine died: entered by the launcher that started it. `exit_code` is negative for a signal."""

    __tablename__ = "engine_crashes"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    model: Mapped[str]
    worker: Mapped[str]
    exit_code: Mapped[int] = mapped_column(Integer)
    crashed_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
