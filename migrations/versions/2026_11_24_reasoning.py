"""Reasoning tokens of jobs, shards and batches, and the hash of the model file of an answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_reasoning"
down_revision: str | None = "2026_11_24_validations"


def upgrade() -> None:
    """Reasoning tokens are part of the completion tokens."""
    op.add_column("jobs", sa.Column("reasoning_tokens", sa.Integer()))
    op.add_column("jobs", sa.Column("settings_hash", sa.Text()))
    for table in ("shards", "batches"):
        op.add_column(table, sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("jobs", "settings_hash")
    for table in ("jobs", "shards", "batches"):
        op.drop_column(table, "reasoning_tokens")
