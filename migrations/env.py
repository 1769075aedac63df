"""Entry point of Alembic: runs migrations on the connection of `db.schema_version`, or from the `alembic` command on DATABASE_URL."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from core.settings import load_settings
from db.connections import database_engine
from db.tables import Base

_LOCK = 727_001  # any number, as long as all versions of Millrace take the same advisory lock


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, transactional_ddl=True)
    connection.execute(text("SET LOCAL lock_timeout = '60s'"))
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    with context.begin_transaction():
        context.run_migrations()


def _print_sql() -> None:
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


def _run_on_database_url() -> None:
    url = load_settings().database_url
    if not url:
        raise SystemExit("Set DATABASE_URL to the database, such as postgresql://user@host/name.")
    with database_engine(url, pool_size=1).begin() as connection:
        _run(connection)


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
elif context.is_offline_mode():
    _print_sql()
else:
    _run_on_database_url()
