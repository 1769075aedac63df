"""Common names for columns and counters, and without two columns of `jobs` that nothing reads.

Each step changes the catalogue only, so it takes the same time for any number of rows: Postgres renames and drops a column
without a rewrite of the table, and adds one with a constant default in the same way. `counters` has a handful of rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_29_names"
down_revision: str | None = "2026_11_28_validation_claims"


def upgrade() -> None:
    op.alter_column("quarantine", "convicted_at", new_column_name="blocked_at")
    op.alter_column("worker_engines", "last_words", new_column_name="exit_reason")
    op.drop_column("jobs", "first_token_at")
    op.drop_column("jobs", "priority")
    op.execute("UPDATE counters SET name = 'lines_blocked' WHERE name = 'lines_convicted'")


def downgrade() -> None:
    """Both columns of `jobs` come back without their values, which nothing read."""
    op.execute("UPDATE counters SET name = 'lines_convicted' WHERE name = 'lines_blocked'")
    op.add_column("jobs", sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("first_token_at", sa.DateTime(timezone=True), nullable=True))
    op.alter_column("worker_engines", "exit_reason", new_column_name="last_words")
    op.alter_column("quarantine", "blocked_at", new_column_name="convicted_at")
