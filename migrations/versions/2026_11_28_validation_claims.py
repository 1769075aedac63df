"""Claims of file validations: a clerk has a lease, instead of a transaction that stays open while it reads the file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_28_validation_claims"
down_revision: str | None = "2026_11_24_workers"


def upgrade() -> None:
    op.add_column("validations", sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("validations", "claimed_until")
