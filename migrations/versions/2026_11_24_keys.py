"""Keys: scopes, models and limits of a key, limits of a tenant, and the key of each batch, job and day of usage.

Existing rows were made without a key, and keep none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_24_keys"
down_revision: str | None = "2026_11_24_responses"

_LIMITS = ("requests_per_minute", "tokens_per_minute", "queued_tokens", "concurrent_streams")
_CAPS = ("open_batches", "queued_lines")
_JOB_OPEN = sa.text("state IN ('queued', 'running') AND key_id IS NOT NULL")
_BATCH_OPEN = sa.text("NOT (status IN ('completed', 'failed', 'expired', 'cancelled'))")


def upgrade() -> None:
    for name in _CAPS:
        op.add_column("tenants", sa.Column(name, sa.BigInteger(), nullable=True))
    op.create_check_constraint(op.f("ck_tenants_caps"), "tenants", "least(open_batches, queued_lines) > 0")
    scopes = sa.Column("scopes", sa.ARRAY(sa.Text()), server_default="{inference,files}", nullable=False)
    op.add_column("api_keys", scopes)
    op.add_column("api_keys", sa.Column("models", sa.ARRAY(sa.Text()), nullable=True))
    for name in _LIMITS:
        op.add_column("api_keys", sa.Column(name, sa.BigInteger(), nullable=True))
    op.create_check_constraint(op.f("ck_api_keys_limits"), "api_keys", f"least({', '.join(_LIMITS)}) > 0")
    known = "scopes <@ ARRAY['inference', 'files', 'read-only', 'admin'] AND cardinality(scopes) > 0"
    op.create_check_constraint(op.f("ck_api_keys_scopes"), "api_keys", known)
    op.add_column("batches", sa.Column("key_id", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("queued_tokens", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index("ix_batches_tenant_open", "batches", ["tenant_id"], unique=False, postgresql_where=_BATCH_OPEN)
    op.add_column("jobs", sa.Column("key_id", sa.Text(), nullable=True))
    op.create_index("ix_jobs_key_open", "jobs", ["key_id"], unique=False, postgresql_where=_JOB_OPEN)
    op.add_column("usage_daily", sa.Column("key_id", sa.Text(), server_default="", nullable=False))
    op.drop_constraint(op.f("pk_usage_daily"), "usage_daily", type_="primary")
    op.create_primary_key(op.f("pk_usage_daily"), "usage_daily", ["tenant_id", "model", "day", "key_id"])


def downgrade() -> None:
    op.execute("""
        CREATE TEMPORARY TABLE whole ON COMMIT DROP AS
        SELECT tenant_id, model, day, sum(requests) AS requests, sum(prompt_tokens) AS prompt_tokens,
            sum(completion_tokens) AS completion_tokens, sum(cached_tokens) AS cached_tokens
        FROM usage_daily GROUP BY tenant_id, model, day
    """)
    op.execute("DELETE FROM usage_daily")
    op.drop_constraint(op.f("pk_usage_daily"), "usage_daily", type_="primary")
    op.drop_column("usage_daily", "key_id")
    op.create_primary_key(op.f("pk_usage_daily"), "usage_daily", ["tenant_id", "model", "day"])
    columns = "tenant_id, model, day, requests, prompt_tokens, completion_tokens, cached_tokens"
    op.execute(f"INSERT INTO usage_daily ({columns}) SELECT {columns} FROM whole")  # noqa: S608 - our own names
    op.drop_index("ix_jobs_key_open", table_name="jobs", postgresql_where=_JOB_OPEN)
    op.drop_column("jobs", "key_id")
    op.drop_index("ix_batches_tenant_open", table_name="batches", postgresql_where=_BATCH_OPEN)
    op.drop_column("batches", "queued_tokens")
    op.drop_column("batches", "key_id")
    op.drop_constraint(op.f("ck_api_keys_scopes"), "api_keys", type_="check")
    op.drop_constraint(op.f("ck_api_keys_limits"), "api_keys", type_="check")
    for name in ("scopes", "models", *_LIMITS):
        op.drop_column("api_keys", name)
    op.drop_constraint(op.f("ck_tenants_caps"), "tenants", type_="check")
    for name in _CAPS:
        op.drop_column("tenants", name)
