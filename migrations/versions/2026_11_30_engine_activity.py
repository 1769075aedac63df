"""The work of an engine and its tokens, as its launcher reports them; pins of admins; the reason of a crash in words.

The new columns of `worker_engines` are empty until the next heartbeat of a launcher of this version.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "2026_11_30_engine_activity"
down_revision: str | None = "2026_11_30_batch_list"

_COLUMNS = {
    "num_running": sa.Integer(),
    "num_waiting": sa.Integer(),
    "num_embeddings": sa.Integer(),
    "prompt_tokens": sa.BigInteger(),
    "cached_tokens": sa.BigInteger(),
    "output_tokens": sa.BigInteger(),
    "prompt_tokens_per_second": sa.Float(),
    "output_tokens_per_second": sa.Float(),
    "kv_tokens": sa.BigInteger(),
    "kv_reusable_tokens": sa.BigInteger(),
    "kv_total_tokens": sa.BigInteger(),
}
_CHECKS = {
    "requests": "num_running >= 0 AND num_waiting >= 0 AND num_embeddings >= 0",
    "tokens": "cached_tokens BETWEEN 0 AND prompt_tokens AND output_tokens >= 0",
    "tokens_per_second": "prompt_tokens_per_second >= 0 AND output_tokens_per_second >= 0",
    "kv_tokens": "kv_tokens >= 0 AND kv_reusable_tokens >= 0 AND kv_tokens + kv_reusable_tokens <= kv_total_tokens",
}


def upgrade() -> None:
    for name, kind in _COLUMNS.items():
        op.add_column("worker_engines", sa.Column(name, kind, nullable=True))
    for name, condition in _CHECKS.items():
        op.create_check_constraint(op.f(f"ck_worker_engines_{name}"), "worker_engines", condition)
    op.add_column("model_requests", sa.Column("pinned_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("engine_crashes", sa.Column("reason", sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    op.drop_column("engine_crashes", "reason")
    op.drop_column("model_requests", "pinned_at")
    for name in _CHECKS:
        op.drop_constraint(op.f(f"ck_worker_engines_{name}"), "worker_engines", type_="check")
    for name in _COLUMNS:
        op.drop_column("worker_engines", name)
