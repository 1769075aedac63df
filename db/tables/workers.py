"""Worker processes, their engines, counters and crashes."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Integer, func
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base, one_of

WORKER_KINDS: Final = ("chat", "batch", "clerk", "launcher")


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

    __table_args__ = (CheckConstraint(one_of("kind", WORKER_KINDS), name="kind"),)


class WorkerEngine(Base):
    """An engine as one process knows it: a consumer hears its ticks, its launcher sees it die."""

    __tablename__ = "worker_engines"
    worker_id: Mapped[str] = mapped_column(ForeignKey("workers.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    last_tick_at: Mapped[datetime | None]
    num_deaths: Mapped[int] = mapped_column(Integer, server_default="0")
    exit_reason: Mapped[str | None]


class Counter(Base):
    """What the processes without a port have counted, ever: each adds what is new with its heartbeat.

    `model` is empty where the count is of none.
    """

    __tablename__ = "counters"
    name: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True, server_default="")
    value: Mapped[int] = mapped_column(BigInteger, server_default="0")


class EngineCrash(Base):
    """An engine died: entered by the launcher that started it. `exit_code` is negative for a signal."""

    __tablename__ = "engine_crashes"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    model: Mapped[str]
    worker: Mapped[str]
    exit_code: Mapped[int] = mapped_column(Integer)
    crashed_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
