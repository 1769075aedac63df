"""An index on the lines of a batch that have ended without an answer, by state: expired ones may be many, failed ones few."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_state_index"
down_revision: str | None = "2026_11_30_scale"

_UNANSWERED = sa.text("batch_id IS NOT NULL AND state IN ('failed', 'cancelled', 'expired')")


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("ix_jobs_batch_state", "jobs", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "ix_jobs_batch_state",
            "jobs",
            ["batch_id", "state", "line"],
            postgresql_where=_UNANSWERED,
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("ix_jobs_batch_state", "jobs", if_exists=True, postgresql_concurrently=True)
