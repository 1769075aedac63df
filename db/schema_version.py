"""Version of the schema: the one that this code needs, the one of a database, and migrations between them.

Every process compares the first two when it starts; only a launcher migrates. Alembic takes megabytes and a tenth of a second
to load, so only migrations load it, and the versions are found without it.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from core.errors import SchemaLocked, SchemaMismatch
from db.connections import first_connection

if TYPE_CHECKING:
    from alembic.config import Config

ADVICE: Final = "Run `millrace db upgrade`, or start the version of Millrace that fits the database."
LOCK_SECONDS: Final = 5.0  # while a migration waits for a table, every later statement on it waits behind
_LOCK_ATTEMPTS: Final = 6
_LOCKED: Final = (
    "The upgrade waited {attempts} times for {seconds:g} s and did not get the table that it changes ({at}): a long transaction "
    "uses it. Migrations before that are done. Wait for the batch that is prepared or finalized, or end the transaction, "
    "then run `millrace db upgrade` again."
)
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


def schema_problem(connection: Connection) -> str | None:
    """Return the reason why this code must not run on the database, with what to do; None when it may.

    It may at the version that it needs, and at a newer one whose `oldest_code` it is, or a later version than that: see
    `docs/upgrading.md`.
    """
    current, needed = current_version(connection), needed_version()
    if current == needed:
        return None
    if current is not None and current not in _identifiers()["revision"]:
        return _newer_problem(connection, current)
    found = f"The database has schema {current}" if current else "The database has no tables yet"
    return f"{found}; this version needs schema {needed}. {ADVICE}"


def _newer_problem(connection: Connection, current: str) -> str | None:
    """The problem with a version that has no migration here, from which this code can go neither up nor down."""
    oldest = _oldest_code(connection)
    if oldest in _identifiers()["revision"]:
        return None
    reach = f", which needs code of schema {oldest} or later" if oldest else ""
    return (
        f"A newer Millrace has upgraded the database, to schema {current}{reach}. "
        f"Start that version here too; this one needs schema {needed_version()}."
    )


def _oldest_code(connection: Connection) -> str | None:
    """Return the needed version of the oldest code that may run on the database, as its migrations have recorded it."""
    if connection.execute(text("SELECT to_regclass('schema_compatibility')")).scalar_one() is None:
        return None
    oldest: str | None = connection.execute(text("SELECT oldest_code FROM schema_compatibility")).scalar_one_or_none()
    return oldest


def check_schema(engine: Engine) -> str:
    """Return the version of the database. Raises SchemaMismatch unless this code may run on it."""
    with first_connection(engine) as connection:
        problem, current = schema_problem(connection), current_version(connection)
    if problem is not None or current is None:
        raise SchemaMismatch(problem)
    return current


def upgrade(engine: Engine, version: str = "head", *, lock_seconds: float = LOCK_SECONDS) -> None:
    """Upgrade the database to a version; concurrent upgrades wait for each other. One that is newer and compatible stays.

    Raises SchemaMismatch for one that is newer and not compatible, and SchemaLocked when others hold a table for long.
    """
    with first_connection(engine) as connection:
        current = current_version(connection)
        is_newer = current is not None and current not in _identifiers()["revision"]
        problem = schema_problem(connection) if is_newer else None
    if problem is not None:
        raise SchemaMismatch(problem)
    if not is_newer and not (version == "head" and current == needed_version()):
        _migrate(engine, "upgrade", version, lock_seconds)


def downgrade(engine: Engine, version: str) -> None:
    """Downgrade the database to a version."""
    _migrate(engine, "downgrade", version, LOCK_SECONDS)


def _migrate(engine: Engine, verb: str, version: str, lock_seconds: float) -> None:
    """Run migrations, each in its own transaction. One that gets no lock is tried again, and those before it stay."""
    from alembic import command

    for is_last in (*[False] * (_LOCK_ATTEMPTS - 1), True):
        try:
            with engine.connect() as connection:
                getattr(command, verb)(_config(connection, lock_seconds), version)
            return
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable):
                raise
            if is_last:
                statement = " ".join((error.statement or "").split())
                raise SchemaLocked(
                    _LOCKED.format(attempts=_LOCK_ATTEMPTS, seconds=lock_seconds, at=statement)
                ) from None


def _config(connection: Connection, lock_seconds: float) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.attributes.update(connection=connection, lock_seconds=lock_seconds)
    return config
