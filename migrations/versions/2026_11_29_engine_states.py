"""The state of an engine and its warning, in the reports of launchers.

Both columns are empty until the next heartbeat of a launcher of this version; `worker_engines` has a handful of rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_29_engine_states"
down_revision: str | None = "2026_11_29_stored_chats"


def upgrade() -> None:
    op.add_column("worker_engines", sa.Column("state", sa.Text(), nullable=True))
    op.add_column("worker_engines", sa.Column("warning", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_worker_engines_state"), "worker_engines", "state IN ('loading', 'ready', 'failed', 'missing')"
    )


def downgrade() -> None:
    op.drop_constraint(op.f("ck_worker_engines_state"), "worker_engines", type_="check")
    op.drop_column("worker_engines", "warning")
    op.drop_column("worker_engines", "state")
