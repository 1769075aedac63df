"""Version of the schema: the one that this code needs, the one of a database, and migrations between them.

Every process compares the first two when it starts; only a launcher migrates. Alembic takes megabytes and a tenth of a second
to load, so only migrations load it, and the versions are found without it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, text

from core.errors import SchemaMismatch
from db.connections import first_connection

if TYPE_CHECKING:
    from alembic.config import Config

ADVICE: Final = "Run `millrace db upgrade`, or start the version of Millrace that fits the database."
_MIGRATIONS: Final = Path(__file__).resolve().parent.parent / "migrations"
_IDENTIFIER: Final = re.compile(r'^(revision|down_revision)\b[^=\n]*= "(\w+)"', re.MULTILINE)


def needed_version() -> str:
    """Return the newest migration of this code: the one without a successor."""
    found = _identifiers()
    heads = found["revision"] - found["down_revision"]
    assert len(heads) == 1, f"migrations are one chain, not {sorted(heads)}"
    return heads.pop()


@cache
def _identifiers() -> dict[str, set[str]]:
    """Read the revision and the predecessor of each migration of this code."""
    found: dict[str, set[str]] = {"revision": set(), "down_revision": set()}
    for file in (_MIGRATIONS / "versions").glob("*.py"):
        for name, version in _IDENTIFIER.findall(file.read_text()):
            found[name].add(version)
    return found


def current_version(connection: Connection) -> str | None:
    """Return the version of the database; None when it is empty."""
    if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return version


def check_schema(engine: Engine) -> None:
    """Raise SchemaMismatch unless the database is exactly at the version this code needs."""
    with first_connection(engine) as connection:
        _refuse_newer(connection)
        current, needed = current_version(connection), needed_version()
    if current != needed:
        found = f"The database has schema {current}" if current else "The database has no tables yet"
        raise SchemaMismatch(f"{found}; this version needs schema {needed}. {ADVICE}")


def _refuse_newer(connection: Connection) -> None:
    """Raise SchemaMismatch for a version without a migration here, from which this code can go neither up nor down."""
    current = current_version(connection)
    if current is not None and current not in _identifiers()["revision"]:
        raise SchemaMismatch(
            f"A newer Millrace has upgraded the database, to schema {current}. "
            f"Start that version here too; this one needs schema {needed_version()}."
        )


def upgrade(engine: Engine, version: str = "head") -> None:
    """Upgrade the database to a version; concurrent upgrades wait for each other. Raises SchemaMismatch for a newer one."""
    with first_connection(engine) as connection, connection.begin():
        _refuse_newer(connection)
        if version == "head" and current_version(connection) == needed_version():
            return
        from alembic import command

        command.upgrade(_config(connection), version)


def downgrade(engine: Engine, version: str) -> None:
    """Downgrade the database to a version."""
    from alembic import command

    with engine.begin() as connection:
        command.downgrade(_config(connection), version)


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes["connection"] = connection
    return config
