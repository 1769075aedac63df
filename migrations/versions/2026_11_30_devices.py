"""The device of a worker, with its memory, as its launcher reports it.

The new columns are empty until the next heartbeat of a launcher of this version; `workers` has a handful of rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_devices"
down_revision: str | None = "2026_11_30_model_requests"


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("workers", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    for name in reversed(_COLUMNS):
        op.drop_column("workers", name)


_COLUMNS: dict[str, sa.types.TypeEngine[object]] = {
    "device": sa.Text(),
    "card": sa.Text(),
    "total_bytes": sa.BigInteger(),
    "free_bytes": sa.BigInteger(),
    "budget_bytes": sa.BigInteger(),
}
