"""Worker processes, their engines, counters and crashes."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Integer, func
from sqlalchemy.orm import Mapped, mapped_column

from core.states import EngineState
from db.tables.base import Base, one_of

WORKER_KINDS: Final = ("chat", "batch", "clerk", "launcher")


class Worker(Base):
    """A worker process: a consumer of tickets, or the launcher of a device's engines. It inserts and renews its row with its
    heartbeat, and deletes it at shutdown; the clerk deletes rows without a heartbeat.

    `last_poll_at` is the time of its last poll for work that the database answered, with or without work. A launcher reports its
    `device`, the `card` or processor, its memory, and the `budget_bytes` that models may have there.
    """

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_poll_at: Mapped[datetime | None]
    device: Mapped[str | None]
    card: Mapped[str | None]
    total_bytes: Mapped[int | None] = mapped_column(BigInteger)
    free_bytes: Mapped[int | None] = mapped_column(BigInteger)
    budget_bytes: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (CheckConstraint(one_of("kind", WORKER_KINDS), name="kind"),)


class WorkerEngine(Base):
    """An engine as seen by one process: a consumer receives its ticks, its launcher sees its state and its exits.

    Its launcher reports `warning`, the engine's remark on the model, such as a missing chat template; and of an engine in memory
    `device`, `memory_bytes` (of weights, KV cache and buffers), `slots`, the `context_size` of a slot in tokens, and
    `settings_json`, its `engine.process.protocol.EngineSettings`. The columns from `num_running` on are
    `db.workers.EngineActivity`, which the launcher also renews between heartbeats while it changes.
    """

    __tablename__ = "worker_engines"
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    last_tick_at: Mapped[datetime | None]
    num_deaths: Mapped[int] = mapped_column(Integer, server_default="0")
    exit_reason: Mapped[str | None]
    state: Mapped[EngineState | None]
    warning: Mapped[str | None]
    device: Mapped[str | None]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    slots: Mapped[int | None] = mapped_column(Integer)
    context_size: Mapped[int | None] = mapped_column(Integer)
    settings_json: Mapped[str | None]
    num_running: Mapped[int | None] = mapped_column(Integer)
    num_waiting: Mapped[int | None] = mapped_column(Integer)
    num_embeddings: Mapped[int | None] = mapped_column(Integer)
    prompt_tokens: Mapped[int | None] = mapped_column(BigInteger)
    cached_tokens: Mapped[int | None] = mapped_column(BigInteger)
    output_tokens: Mapped[int | None] = mapped_column(BigInteger)
    prompt_tokens_per_second: Mapped[float | None]
    output_tokens_per_second: Mapped[float | None]
    kv_tokens: Mapped[int | None] = mapped_column(BigInteger)
    kv_reusable_tokens: Mapped[int | None] = mapped_column(BigInteger)
    kv_total_tokens: Mapped[int | None] = mapped_column(BigInteger)

    __table_args__ = (
        CheckConstraint(one_of("state", EngineState), name="state"),
        CheckConstraint("num_running >= 0 AND num_waiting >= 0 AND num_embeddings >= 0", name="requests"),
        CheckConstraint("cached_tokens BETWEEN 0 AND prompt_tokens AND output_tokens >= 0", name="tokens"),
        CheckConstraint("prompt_tokens_per_second >= 0 AND output_tokens_per_second >= 0", name="tokens_per_second"),
        CheckConstraint(
            "kv_tokens >= 0 AND kv_reusable_tokens >= 0 AND kv_tokens + kv_reusable_tokens <= kv_total_tokens",
            name="kv_tokens",
        ),
    )


class ModelLoad(Base):
    """The time that a model takes to load on a device: the mean of its last loads, kept for policies and estimates."""

    __tablename__ = "model_loads"
    model: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str] = mapped_column(primary_key=True)
    device: Mapped[str] = mapped_column(primary_key=True)
    seconds: Mapped[float]
    num_loads: Mapped[int] = mapped_column(Integer)
    loaded_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (CheckConstraint("seconds >= 0 AND num_loads > 0", name="seconds"),)


class Counter(Base):
    """A counter of processes without a port: each adds its new counts with its heartbeat.

    `model` is empty for a counter that is not of a model.
    """

    __tablename__ = "counters"
    name: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True, server_default="")
    value: Mapped[int] = mapped_column(BigInteger, server_default="0")


class ModelRequest(Base):
    """Requests of admins concerning a model. `load_at` is empty when no load is open; an unload concerns the engines that
    began to load before `unload_at`. A model with a `pinned_at` counts as pinned, whatever its file says.
    """

    __tablename__ = "model_requests"
    model: Mapped[str] = mapped_column(primary_key=True)
    load_at: Mapped[datetime | None]
    unload_at: Mapped[datetime | None]
    pinned_at: Mapped[datetime | None]


class EngineCrash(Base):
    """A crash of an engine, inserted by its launcher. `exit_code` is negative for a signal; `reason` has it in words."""

    __tablename__ = "engine_crashes"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    model: Mapped[str]
    worker: Mapped[str]
    exit_code: Mapped[int] = mapped_column(Integer)
    reason: Mapped[str] = mapped_column(server_default="")
    crashed_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
