"""The schema's version: what this code needs, what a database has, and how to get from one to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from core.errors import SchemaMismatch

_MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"


def needed_version() -> str:
    """The newest migration of this code."""
    head = ScriptDirectory(str(_MIGRATIONS)).get_current_head()
    assert head is not None, "there is at least one migration"
    return head


def current_version(connection: Connection) -> str | None:
    """What the database has; None when it is empty."""
    return MigrationContext.configure(connection).get_current_revision()


def check_schema(engine: Engine) -> None:
    """Raise SchemaMismatch unless the database is exactly at the version this code needs."""
    with engine.connect() as connection:
        current, needed = current_version(connection), needed_version()
    if current != needed:
        raise SchemaMismatch(
            f"The database schema is at {current or 'nothing'}, this code needs {needed}. "
            "Run `millrace db upgrade`, or start the version of Millrace that fits the database."
        )


def upgrade(engine: Engine, version: str = "head") -> None:
    """Bring the database to a version; two that try at once wait for each other."""
    with engine.begin() as connection:
        command.upgrade(_config(connection), version)


def downgrade(engine: Engine, version: str) -> None:
    """Take migrations back."""
    with engine.begin() as connection:
        command.downgrade(_config(connection), version)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config
