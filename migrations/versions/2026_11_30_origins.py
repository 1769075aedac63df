"""Origins of jobs and batches: the request that created them, and the trace that they belong to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_origins"
down_revision: str | None = "2026_11_30_mapped_batches"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("origin_json", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("origin_json", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("batches", "origin_json")
    op.drop_column("jobs", "origin_json")
