"""A version of Millrace and a database that another version has upgraded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import Engine, text

from cli.stack.services import Services
from db.connections import database_engine
from db.schema_version import needed_version, upgrade
from tests.support.stack import StackProcess, batch_lines, clean_environment, start_batch, wait_for, write_lines

NEWER = "2099_01_01_from_the_future"
SET_VERSION = "UPDATE alembic_version SET version_num = :version"
MILLRACE = str(Path(sys.executable).with_name("millrace"))
PROCESSES = {
    "api": [sys.executable, "-P", "-m", "api"],
    "worker": [sys.executable, "-P", "-m", "workers", "--device", "cpu"],
    "clerk": [sys.executable, "-P", "-m", "workers.consumers.main", "clerk"],
    "serve": [MILLRACE, "serve", "--port", "0", "--device", "cpu"],
    "db upgrade": [MILLRACE, "db", "upgrade"],
    "db check": [MILLRACE, "db", "check"],
}


@contextmanager
def database(services: Services, migrated: Engine, name: str) -> Iterator[str]:
    """Yield the address of a new database with the schema of this version."""
    with migrated.connect().execution_options(isolation_level="AUTOCOMMIT") as admin:
        admin.execute(text(f"CREATE DATABASE {name}"))
    url = services.database_url.replace("/millrace?", f"/{name}?")
    engine = database_engine(url, pool_size=1)
    upgrade(engine)
    engine.dispose()
    yield url


def execute(url: str, *statements: str) -> None:
    engine = database_engine(url, pool_size=1)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), {"version": NEWER})
    engine.dispose()


@pytest.fixture(scope="module")
def newer(services: Services, migrated: Engine) -> Iterator[str]:
    """Return the address of a database that a later version has upgraded, and that only this version can use."""
    with database(services, migrated, "newer") as url:
        execute(url, SET_VERSION, "UPDATE schema_compatibility SET oldest_code = :version")
        yield url
        engine = database_engine(url, pool_size=1)
        with engine.connect() as connection:
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
    assert f"A newer Millrace has upgraded the database, to schema {NEWER}, which needs code of" in output
    assert "Start that version here too" in output
    assert needed_version() in output
    assert "Traceback" not in output


def test_a_stack_goes_on_while_a_newer_version_expands_its_schema(
    services: Services, migrated: Engine, models_dir: Path, tmp_path: Path
) -> None:
    """During a rolling upgrade, the api and the workers of the previous version run on the schema of the next one."""
    with database(services, migrated, "expanded") as url:
        stack = StackProcess(tmp_path, models_dir, MILLRACE_DATABASE_URL=url)
        try:
            stack.start()
            assert use(stack) == (8, 3)
            expand = (
                "ALTER TABLE jobs ADD COLUMN region text",
                "ALTER TABLE batches ADD COLUMN tags text[] DEFAULT '{}'",
            )
            execute(url, *expand, "CREATE TABLE regions (id text PRIMARY KEY)", SET_VERSION)
            assert use(stack) == (8, 3)
        finally:
            stack.close()


def use(stack: StackProcess) -> tuple[int, int]:
    """Run chats, more of them than a statement needs to become a prepared one, and a batch; count what was answered."""
    answers = 0
    with stack.client() as client:
        for number in range(8):
            message = {"role": "user", "content": f"hello {number}"}
            chat = client.chat.completions.create(model="fake", messages=[message], max_tokens=1)  # type: ignore[list-item]
            answers += bool(chat.choices[0].message.content)
        source = write_lines(stack.folder / "in.jsonl", batch_lines(3, max_tokens=1))
        batch_id = start_batch(client, source)
        wait_for(lambda: client.batches.retrieve(batch_id).status == "completed", "the batch")
        counts = client.batches.retrieve(batch_id).request_counts
    assert httpx2.get(f"{stack.url}/readyz").json()["status"] == "ok"
    return answers, counts.completed if counts else 0
