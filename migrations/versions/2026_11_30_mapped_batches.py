"""Batches whose lines were made from the rows of a table: the file of the table, and the mapping."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_mapped_batches"
down_revision: str | None = "2026_11_30_engine_activity"


def upgrade() -> None:
    op.add_column("batches", sa.Column("table_file_id", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("mapping_json", sa.Text(), nullable=True))
    op.create_check_constraint(
        op.f("ck_batches_mapping"), "batches", "(table_file_id IS NULL) = (mapping_json IS NULL)"
    )
    op.create_index(
        "ix_batches_table_file_id",
        "batches",
        ["table_file_id"],
        postgresql_where=sa.text("table_file_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_batches_table_file_id", table_name="batches")
    op.drop_constraint(op.f("ck_batches_mapping"), "batches", type_="check")
    op.drop_column("batches", "mapping_json")
    op.drop_column("batches", "table_file_id")
