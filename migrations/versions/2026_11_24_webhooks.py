"""Webhooks: endpoints with a name, a secret that may overlap its successor, and their failures; the outbox of events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_webhooks"
down_revision: str | None = "2026_11_24_batch_plan"

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("webhooks", sa.Column("name", sa.Text(), server_default="", nullable=False))
    op.add_column("webhooks", sa.Column("old_secret", sa.Text(), nullable=True))
    op.add_column("webhooks", sa.Column("old_secret_until", _MOMENT, nullable=True))
    op.add_column("webhooks", sa.Column("updated_at", _MOMENT, server_default=sa.text("now()"), nullable=False))
    op.add_column("webhooks", sa.Column("failing_since", _MOMENT, nullable=True))
    op.add_column("webhooks", sa.Column("last_error", sa.Text(), nullable=True))
    op.add_column("webhooks", sa.Column("events_delivered", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("webhooks", sa.Column("events_given_up", sa.BigInteger(), server_default="0", nullable=False))
    op.drop_column("webhooks", "disabled_at")
    op.create_check_constraint(
        op.f("ck_webhooks_old_secret"), "webhooks", "(old_secret IS NULL) = (old_secret_until IS NULL)"
    )
    op.create_check_constraint(
        op.f("ck_webhooks_failing"), "webhooks", "(failing_since IS NULL) = (last_error IS NULL)"
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("is_test", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", _MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", _MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("finished_at", _MOMENT, nullable=True),
        sa.Column("is_delivered", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("NOT is_delivered OR finished_at IS NOT NULL", name=op.f("ck_webhook_deliveries_delivered")),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("fk_webhook_deliveries_webhook_id_webhooks"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_webhook_deliveries_tenant_id_tenants"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", "webhook_id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(op.f("ix_webhook_deliveries_webhook_id"), "webhook_deliveries", ["webhook_id"])
    op.create_index(op.f("ix_webhook_deliveries_tenant_id"), "webhook_deliveries", ["tenant_id"])
    op.create_index(
        "ix_webhook_deliveries_due", "webhook_deliveries", ["due_at"], postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_index("ix_webhook_deliveries_finished", "webhook_deliveries", ["finished_at"])


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_constraint(op.f("ck_webhooks_failing"), "webhooks", type_="check")
    op.drop_constraint(op.f("ck_webhooks_old_secret"), "webhooks", type_="check")
    op.add_column("webhooks", sa.Column("disabled_at", _MOMENT, nullable=True))
    for column in (
        "events_given_up",
        "events_delivered",
        "last_error",
        "failing_since",
        "updated_at",
        "old_secret_until",
        "old_secret",
        "name",
    ):
        op.drop_column("webhooks", column)
