"""The batch plan: the position of each line in it, which is the order in which a shard is read.

Existing lines keep the order of the file.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_batch_plan"
down_revision: str | None = "2026_11_23_first"

_QUEUED = sa.text("state = 'queued' AND shard_id IS NOT NULL")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("position", sa.Integer(), nullable=True))
    op.execute("UPDATE jobs SET position = line WHERE shard_id IS NOT NULL")
    op.create_check_constraint(op.f("ck_jobs_position"), "jobs", "(shard_id IS NULL) = (position IS NULL)")
    op.drop_index("ix_jobs_shard_queue", table_name="jobs", postgresql_where=_QUEUED)
    op.create_index("ix_jobs_shard_queue", "jobs", ["shard_id", "position"], unique=False, postgresql_where=_QUEUED)


def downgrade() -> None:
    op.drop_index("ix_jobs_shard_queue", table_name="jobs", postgresql_where=_QUEUED)
    op.create_index("ix_jobs_shard_queue", "jobs", ["shard_id", "line"], unique=False, postgresql_where=_QUEUED)
    op.drop_constraint(op.f("ck_jobs_position"), "jobs", type_="check")
    op.drop_column("jobs", "position")
