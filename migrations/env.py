"""Entry point of Alembic: runs migrations on the connection of `db.schema_version`, or from the `alembic` command on DATABASE_URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection, Engine, event

from core.settings import load_settings
from db.connections import database_engine
from db.schema_version import LOCK_SECONDS
from db.tables import Base

_LOCK = 727_001  # any number, as long as all versions of Millrace take the same advisory lock
_OTHER_UPGRADE = "10min"


def _run(connection: Connection) -> None:
    lock_seconds = context.config.attributes.get("lock_seconds", LOCK_SECONDS)

    @event.listens_for(connection, "begin")
    def limit_waits(_: Connection) -> None:
        is_autocommit = connection.get_isolation_level() == "AUTOCOMMIT"
        scope = "SESSION" if is_autocommit else "LOCAL"  # an index that is created concurrently
        connection.exec_driver_sql(f"SET {scope} lock_timeout = {round(1000 * lock_seconds)}")
        connection.exec_driver_sql(f"SET {scope} statement_timeout = 0")

    with _only_upgrade(connection.engine):
        context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
    connection.invalidate()  # it may have kept these limits, so it does not go back to the pool


@contextmanager
def _only_upgrade(engine: Engine) -> Iterator[None]:
    """Let one process at a time migrate.

    The lock is that of a transaction on another connection: each migration commits, and behind a pooler of transactions a lock
    of a session would stay with a connection of the pool.
    """
    with engine.connect() as connection, connection.begin():
        for name, value in (("lock_timeout", _OTHER_UPGRADE), ("statement_timeout", "0")):
            connection.exec_driver_sql(f"SET LOCAL {name} = '{value}'")
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        yield


def _print_sql() -> None:
    context.configure(
        dialect_name="postgresql",
        target_metadata=Base.metadata,
        literal_binds=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def _run_on_database_url() -> None:
    url = load_settings().database_url
    if not url:
        raise SystemExit("Set DATABASE_URL to the database, such as postgresql://user@host/name.")
    with database_engine(url, pool_size=1).connect() as connection:
        _run(connection)


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
elif context.is_offline_mode():
    _print_sql()
else:
    _run_on_database_url()
