"""Requests of admins to load and unload models: one row for each model, written by the api and read by launchers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_model_requests"
down_revision: str | None = "2026_11_29_residency"


def upgrade() -> None:
    op.create_table(
        "model_requests",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("load_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("unload_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_model_requests")),
    )


def downgrade() -> None:
    op.drop_table("model_requests")
