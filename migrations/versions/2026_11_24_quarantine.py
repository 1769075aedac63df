"""Engine crashes: the number that a line is suspected of, quarantined requests by fingerprint, and each crash."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_quarantine"
down_revision: str | None = "2026_11_24_made_by"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("crashes", sa.SmallInteger(), server_default="0", nullable=False))
    op.create_table(
        "quarantine",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("crashes", sa.SmallInteger(), nullable=False),
        sa.Column("crashed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("convicted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("crashes >= 0", name=op.f("ck_quarantine_crashes")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_quarantine_tenant_id_tenants"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_quarantine")),
    )
    op.create_index(op.f("ix_quarantine_tenant_id_model"), "quarantine", ["tenant_id", "model"], unique=False)
    op.create_table(
        "engine_crashes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=False),
        sa.Column("crashed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_engine_crashes")),
    )
    op.create_index(op.f("ix_engine_crashes_crashed_at"), "engine_crashes", ["crashed_at"], unique=False)


def downgrade() -> None:
    op.drop_table("engine_crashes")
    op.drop_table("quarantine")
    op.drop_column("jobs", "crashes")
