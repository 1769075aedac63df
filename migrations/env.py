"""Alembic's entry: runs migrations on the connection that `db.schema_version` hands over."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from db.tables import Base

_LOCK = 727_001  # any number, as long as all versions of Millrace take the same advisory lock

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
connection.execute(text("SET LOCAL lock_timeout = '60s'"))
connection.execute(text("SET LOCAL statement_timeout = 0"))
connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
with context.begin_transaction():
    context.run_migrations()
