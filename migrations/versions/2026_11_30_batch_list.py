"""Columns and indexes for lists of batches: the name of the file, the time of the last change, look-ups by metadata."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_batch_list"
down_revision: str | None = "2026_11_30_devices"


def upgrade() -> None:
    op.add_column("batches", sa.Column("input_file_name", sa.Text(), nullable=True))
    op.add_column(
        "batches", sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)
    )
    op.execute("UPDATE batches SET input_file_name = files.filename FROM files WHERE files.id = batches.input_file_id")
    op.create_index(op.f("ix_batches_tenant_id_updated_at"), "batches", ["tenant_id", "updated_at"])
    op.create_index(
        "ix_batches_metadata",
        "batches",
        [sa.text("(metadata_json::jsonb) jsonb_path_ops")],
        postgresql_using="gin",
    )


def downgrade() -> None:
    op.drop_index("ix_batches_metadata", table_name="batches")
    op.drop_index(op.f("ix_batches_tenant_id_updated_at"), table_name="batches")
    op.drop_column("batches", "updated_at")
    op.drop_column("batches", "input_file_name")
