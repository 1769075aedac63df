"""Jobs of several endpoints: a column names the endpoint of the body. Existing jobs are chats."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_endpoints"
down_revision: str | None = "2026_11_24_uploads"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("endpoint", sa.Text(), server_default="/v1/chat/completions", nullable=False))


def downgrade() -> None:
    op.drop_column("jobs", "endpoint")
