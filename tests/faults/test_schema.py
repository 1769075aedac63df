"""A version of Millrace and a database that another version has upgraded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from cli.stack.services import Services
from db.connections import database_engine
from db.schema_version import needed_version, upgrade
from tests.support.stack import clean_environment

NEWER = "2099_01_01_from_the_future"
MILLRACE = str(Path(sys.executable).with_name("millrace"))
PROCESSES = {
    "api": [sys.executable, "-P", "-m", "api"],
    "worker": [sys.executable, "-P", "-m", "workers", "--device", "cpu"],
    "clerk": [sys.executable, "-P", "-m", "workers.consumers.main", "clerk"],
    "serve": [MILLRACE, "serve", "--port", "0", "--device", "cpu"],
    "db upgrade": [MILLRACE, "db", "upgrade"],
    "db check": [MILLRACE, "db", "check"],
}


@pytest.fixture(scope="module")
def newer(services: Services, migrated: Engine) -> Iterator[str]:
    """Return the address of a database that a later version has upgraded."""
    with migrated.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text("CREATE DATABASE newer"))
    url = services.database_url.replace("/millrace?", "/newer?")
    engine = database_engine(url, pool_size=1)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": NEWER})
    yield url
    with engine.begin() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == NEWER
    engine.dispose()


@pytest.mark.parametrize("name", list(PROCESSES))
def test_an_old_process_refuses_a_newer_schema_with_advice(
    name: str, newer: str, services: Services, models_dir: Path, tmp_path: Path
) -> None:
    """F49: it ends at once, and changes nothing."""
    environment = {
        **clean_environment(),
        "MILLRACE_STATE_DIR": str(tmp_path),
        "MILLRACE_MODELS_DIR": str(models_dir),
        "MILLRACE_PORT": "0",
        "MILLRACE_DATABASE_URL": newer,
        "MILLRACE_REDIS_URL": services.redis_url,
    }
    done = subprocess.run(
        PROCESSES[name], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode not in (0, None), output
    assert f"A newer Millrace has upgraded the database, to schema {NEWER}." in output
    assert "Start that version here too" in output
    assert needed_version() in output
    assert "Traceback" not in output
