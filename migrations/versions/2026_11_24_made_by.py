"""Chat template and model parameters of an answer, and responses in the background, which send webhooks at their end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_made_by"
down_revision: str | None = "2026_11_24_limits"


def upgrade() -> None:
    """Existing responses send no events: no webhook could subscribe to them."""
    op.add_column("jobs", sa.Column("template_hash", sa.Text()))
    op.add_column("jobs", sa.Column("model_parameters", sa.Text()))
    op.add_column(
        "responses", sa.Column("is_background", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )


def downgrade() -> None:
    op.drop_column("responses", "is_background")
    op.drop_column("jobs", "model_parameters")
    op.drop_column("jobs", "template_hash")
