"""Webhook endpoints and their deliveries."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Integer, func, text
from sqlalchemy.orm import Mapped, mapped_column

from db.tables.base import Base


class Webhook(Base):
    """A URL that receives events. `events` are their types, separated by commas.

    The secret signs events, so it is stored in clear text. After a rotation the old one may sign, too, for a while.
    `failing_since` is the first failure since the last success, `last_error` the latest one.
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
    """The delivery of an event to an endpoint: inserted in the transaction in which the event happens, and ended once.

    A claim moves `due_at` by a lease and raises `attempt`, the fence of later writes. A test is sent once, and does not
    count for its endpoint.
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
