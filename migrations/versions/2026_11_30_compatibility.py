"""The oldest code that may run on the database: each later migration that ends support for older code raises it.

Code from before this migration does not read it, and runs on its own schema only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_compatibility"
down_revision: str | None = "2026_11_30_origins"


def upgrade() -> None:
    op.create_table(
        "schema_compatibility",
        sa.Column("is_only", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("oldest_code", sa.Text(), nullable=False),
        sa.CheckConstraint("is_only", name=op.f("ck_schema_compatibility_is_only")),
        sa.PrimaryKeyConstraint("is_only", name=op.f("pk_schema_compatibility")),
    )
    op.execute("INSERT INTO schema_compatibility (oldest_code) VALUES ('2026_11_30_compatibility')")


def downgrade() -> None:
    op.drop_table("schema_compatibility")
