"""Models that are not in memory, the memory of those that are, and the time that loads take.

The new columns are empty until the next heartbeat of a launcher of this version; `worker_engines` has a handful of rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_29_residency"
down_revision: str | None = "2026_11_29_engine_states"


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("worker_engines", sa.Column(name, kind, nullable=True))
    _check_states("'unloaded', 'loading', 'ready', 'failed', 'missing'")
    op.create_table(
        "model_loads",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("num_loads", sa.Integer(), nullable=False),
        sa.Column("loaded_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("seconds >= 0 AND num_loads > 0", name=op.f("ck_model_loads_seconds")),
        sa.PrimaryKeyConstraint("model", "host", "device", name=op.f("pk_model_loads")),
    )


def downgrade() -> None:
    op.drop_table("model_loads")
    op.execute("DELETE FROM worker_engines WHERE state = 'unloaded'")
    _check_states("'loading', 'ready', 'failed', 'missing'")
    for name in reversed(_COLUMNS):
        op.drop_column("worker_engines", name)


_COLUMNS: dict[str, sa.types.TypeEngine[object]] = {
    "device": sa.Text(),
    "memory_bytes": sa.BigInteger(),
    "slots": sa.Integer(),
    "context_size": sa.Integer(),
}


def _check_states(states: str) -> None:
    op.drop_constraint(op.f("ck_worker_engines_state"), "worker_engines", type_="check")
    op.create_check_constraint(op.f("ck_worker_engines_state"), "worker_engines", f"state IN ({states})")
