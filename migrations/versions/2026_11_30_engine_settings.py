"""The settings with which an engine computes, and the speeds that were measured for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_engine_settings"
down_revision: str | None = "2026_11_30_state_index"


def upgrade() -> None:
    op.add_column("worker_engines", sa.Column("settings_json", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("worker_engines", "settings_json")
