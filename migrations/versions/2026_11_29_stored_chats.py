"""Chat completions that are kept by `store`: the row that lists them, beside the job that has request and answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_29_stored_chats"
down_revision: str | None = "2026_11_29_names"


def upgrade() -> None:
    op.create_table(
        "stored_chats",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("metadata_json", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_stored_chats_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_stored_chats")),
    )
    op.create_index(op.f("ix_stored_chats_tenant_id_job_id"), "stored_chats", ["tenant_id", "job_id"])


def downgrade() -> None:
    op.drop_table("stored_chats")
