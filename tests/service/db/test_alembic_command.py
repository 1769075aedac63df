"""The `alembic` command from the project's root: alembic.ini and the fallback of migrations/env.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from cli.stack.services import Services
from core.settings import ROOT
from db.connections import database_engine
from db.schema_version import check_schema, needed_version


@pytest.fixture
def fresh(services: Services, migrated: Engine) -> Iterator[Engine]:
    """An empty database of its own."""
    with migrated.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text("DROP DATABASE IF EXISTS fresh"))
        admin.execute(text("CREATE DATABASE fresh"))
    engine = database_engine(services.database_url.replace("/millrace?", "/fresh?"), pool_size=1)
    yield engine
    engine.dispose()


def alembic(*arguments: str, database_url: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DATABASE_URL": database_url}
    command = [sys.executable, "-m", "alembic.config", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_heads_and_history_need_no_database() -> None:
    assert alembic("heads").stdout.split() == [needed_version(), "(head)"]
    assert f"-> {needed_version()} (head)" in alembic("history").stdout


def test_upgrade_migrates_the_database_of_database_url(fresh: Engine) -> None:
    url = fresh.url.render_as_string(hide_password=False)
    assert alembic("upgrade", "head", database_url=url).returncode == 0
    check_schema(fresh)
    assert needed_version() in alembic("current", database_url=url).stdout


def test_the_printed_sql_gives_the_same_schema(fresh: Engine) -> None:
    script = alembic("upgrade", "head", "--sql").stdout
    connection = fresh.raw_connection()
    connection.driver_connection.autocommit = True  # type: ignore[union-attr] # the script has its own BEGIN and COMMIT
    for statement in script.split(";\n"):  # as psql does: some run outside of a transaction
        connection.cursor().execute(statement)
    connection.close()
    check_schema(fresh)


def test_a_missing_database_url_is_one_sentence() -> None:
    done = alembic("current")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Set DATABASE_URL to the database")
