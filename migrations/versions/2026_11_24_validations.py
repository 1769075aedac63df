"""File validations, which a clerk answers; and an index on recent batches of a model, for estimates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_validations"
down_revision: str | None = "2026_11_24_endpoints"

_COMPLETED = sa.text("status = 'completed'")


def upgrade() -> None:
    op.create_table(
        "validations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=True),
        sa.Column("report", sa.Text(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("report IS NULL OR failure IS NULL", name=op.f("ck_validations_answer")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_validations_tenant_id_tenants"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_validations")),
    )
    op.create_index(op.f("ix_validations_tenant_id"), "validations", ["tenant_id"], unique=False)
    op.create_index(op.f("ix_validations_created_at"), "validations", ["created_at"], unique=False)
    op.create_index("ix_batches_measured", "batches", ["model", "id"], unique=False, postgresql_where=_COMPLETED)


def downgrade() -> None:
    op.drop_index("ix_batches_measured", table_name="batches", postgresql_where=_COMPLETED)
    op.drop_table("validations")
