"""Limits: calls of a key per minute, bytes of a tenant's files; and an index on the pending uploads of a tenant.

Existing keys and tenants get the limits of the settings.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_limits"
down_revision: str | None = "2026_11_24_reasoning"

_LIMITS = "requests_per_minute, tokens_per_minute, queued_tokens, concurrent_streams"
_CAPS = "open_batches, queued_lines"
_PENDING = sa.text("status = 'pending'")


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("calls_per_minute", sa.BigInteger(), nullable=True))
    _check_least("api_keys", "limits", f"{_LIMITS}, calls_per_minute")
    op.add_column("tenants", sa.Column("storage_bytes", sa.BigInteger(), nullable=True))
    _check_least("tenants", "caps", f"{_CAPS}, storage_bytes")
    op.create_index("ix_uploads_tenant_pending", "uploads", ["tenant_id"], unique=False, postgresql_where=_PENDING)


def downgrade() -> None:
    op.drop_index("ix_uploads_tenant_pending", table_name="uploads", postgresql_where=_PENDING)
    _check_least("tenants", "caps", _CAPS)
    op.drop_column("tenants", "storage_bytes")
    _check_least("api_keys", "limits", _LIMITS)
    op.drop_column("api_keys", "calls_per_minute")


def _check_least(table: str, name: str, columns: str) -> None:
    """Replace a CHECK: none of these columns may be zero."""
    op.drop_constraint(op.f(f"ck_{table}_{name}"), table, type_="check")
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, f"least({columns}) > 0")
