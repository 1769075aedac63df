"""The first line of each shard, and settings of tables for many rows: vacuum while the dead rows are few, room for updates.

Shards of older batches have no `first_line`, which is read as 0. Each step changes the catalogue only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_scale"
down_revision: str | None = "2026_11_30_compatibility"

_SETTINGS = {
    # by default, four million lines of twenty million would be dead before the first vacuum
    "jobs": {
        "autovacuum_vacuum_scale_factor": 0.05,
        "autovacuum_vacuum_insert_scale_factor": 0.1,
        "autovacuum_analyze_scale_factor": 0.02,
    },
    # counts and leases change often and are in no index, so a new version of the row fits beside the old one
    "shards": {"fillfactor": 70, "autovacuum_vacuum_scale_factor": 0.05},
}


def upgrade() -> None:
    op.add_column("shards", sa.Column("first_line", sa.Integer(), nullable=True))
    for table, settings in _SETTINGS.items():
        op.execute(f"ALTER TABLE {table} SET ({', '.join(f'{name} = {value}' for name, value in settings.items())})")


def downgrade() -> None:
    for table, settings in _SETTINGS.items():
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(settings)})")
    op.drop_column("shards", "first_line")
