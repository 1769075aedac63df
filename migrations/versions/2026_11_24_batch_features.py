"""Batches: parents, priorities and pauses; lines: indexes on `custom_id`, on failures, and on the order in which they ended.

Lines that have ended already get transaction 0, so they come before all later ones.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_batch_features"
down_revision: str | None = "2026_11_24_keys"

_LINES = sa.text("batch_id IS NOT NULL")
_FINISHED = sa.text("batch_id IS NOT NULL AND finished_at IS NOT NULL")
_UNANSWERED = sa.text("batch_id IS NOT NULL AND state IN ('failed', 'cancelled', 'expired')")


def upgrade() -> None:
    op.add_column("batches", sa.Column("parent_batch_id", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column("batches", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("batches", sa.Column("resumed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_foreign_key(
        op.f("fk_batches_parent_batch_id_batches"),
        "batches",
        "batches",
        ["parent_batch_id"],
        ["id"],
        ondelete="SET NULL",
    )
    op.create_index(op.f("ix_batches_parent_batch_id"), "batches", ["parent_batch_id"])
    op.create_check_constraint(op.f("ck_batches_priority"), "batches", "priority BETWEEN -100 AND 100")
    op.add_column("jobs", sa.Column("finish_xact", sa.BigInteger(), nullable=True))
    op.execute("UPDATE jobs SET finish_xact = 0 WHERE finished_at IS NOT NULL")
    op.alter_column("jobs", "finish_xact", server_default=sa.text("((pg_current_xact_id())::text)::bigint"))
    op.create_index("ix_jobs_batch_custom_id", "jobs", ["batch_id", "custom_id"], postgresql_where=_LINES)
    op.create_index("ix_jobs_batch_finished", "jobs", ["batch_id", "finish_xact", "line"], postgresql_where=_FINISHED)
    op.create_index("ix_jobs_batch_unanswered", "jobs", ["batch_id", "line"], postgresql_where=_UNANSWERED)


def downgrade() -> None:
    op.drop_index("ix_jobs_batch_unanswered", table_name="jobs", postgresql_where=_UNANSWERED)
    op.drop_index("ix_jobs_batch_finished", table_name="jobs", postgresql_where=_FINISHED)
    op.drop_index("ix_jobs_batch_custom_id", table_name="jobs", postgresql_where=_LINES)
    op.drop_column("jobs", "finish_xact")
    op.drop_constraint(op.f("ck_batches_priority"), "batches", type_="check")
    op.drop_index(op.f("ix_batches_parent_batch_id"), table_name="batches")
    op.drop_constraint(op.f("fk_batches_parent_batch_id_batches"), "batches", type_="foreignkey")
    op.drop_column("batches", "resumed_at")
    op.drop_column("batches", "paused_at")
    op.drop_column("batches", "priority")
    op.drop_column("batches", "parent_batch_id")
