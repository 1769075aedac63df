"""PgBouncer in transaction mode, with the settings of deploy/pgbouncer: each transaction may run in another session."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from cli.backup import BackupFailed, backup
from cli.doctor.database import pooler
from cli.doctor.findings import Level
from cli.stack.services import Services
from core.errors import Unreachable
from core.process.listening import bound_socket
from db.connections import allow_long_transaction, async_database_engine, database_engine
from db.schema_version import check_schema
from tests.support.pgbouncer import PgBouncer


def free_port() -> int:
    with bound_socket("127.0.0.1", 0) as held:
        return int(held.getsockname()[1])


class Bouncer(PgBouncer):
    """A PgBouncer before the Postgres of the tests, without TLS or passwords; `url` is the database behind it."""

    def __init__(self, services: Services, **pooler: str) -> None:
        port = free_port()
        self.url = f"postgresql://millrace@127.0.0.1:{port}/millrace"
        assert services._postgres is not None
        plain = {"auth_type": "trust", "client_tls_sslmode": "disable", **pooler}
        super().__init__(services._postgres.user, port, users={"millrace": ""}, pooler=plain)


@pytest.fixture(scope="module")
def bouncer(services: Services, migrated: Engine) -> Iterator[str]:
    """Yield the URL of the database behind a PgBouncer with two sessions."""
    with Bouncer(services, default_pool_size="2") as running:
        running.start(running.url)
        yield running.url


@pytest.fixture
def pool(bouncer: str) -> Iterator[Engine]:
    engine = database_engine(bouncer, pool_size=6)
    yield engine
    engine.dispose()


def scalar(connection: Connection, statement: str) -> Any:
    return connection.execute(text(statement)).scalar_one()


def test_statements_repeated_in_changing_sessions_do_not_fail(pool: Engine) -> None:
    """psycopg would prepare a statement at its fifth use, in a session that the next transaction does not have."""

    def repeat(number: int) -> set[int]:
        sessions = set()
        for _ in range(20):
            with pool.begin() as connection:
                assert (
                    connection.execute(text("SELECT CAST(:number AS int)"), {"number": number}).scalar_one() == number
                )
                sessions.add(scalar(connection, "SELECT pg_backend_pid()"))
        return sessions

    with ThreadPoolExecutor(6) as threads:
        sessions = set().union(*threads.map(repeat, range(6)))
    assert len(sessions) == 2, "six clients shared two sessions"


def test_an_async_pool_and_one_with_async_commit_prepare_nothing_either(bouncer: str) -> None:
    async def prepared() -> set[Any]:
        found = set()
        for async_commit in (False, True):
            engine = async_database_engine(bouncer, pool_size=2, async_commit=async_commit)
            async with engine.connect() as first, engine.connect() as second:
                for connection in (first, second):
                    driver: Any = (await connection.get_raw_connection()).driver_connection
                    found.add(driver.prepare_threshold)
                    assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
            await engine.dispose()
        return found

    assert asyncio.run(prepared()) == {None}


def test_a_direct_connection_prepares_statements(services: Services) -> None:
    engine = database_engine(services.database_url, pool_size=1)
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.prepare_threshold is not None
        assert pooler(connection) is None
    engine.dispose()


def test_sessions_behind_it_have_the_timeouts_and_the_time_zone(pool: Engine) -> None:
    with pool.connect() as connection:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "TimeZone")
        assert [scalar(connection, f"SHOW {name}") for name in names] == ["10s", "3s", "15s", "UTC"]
        finding = pooler(connection)
        assert finding is not None
        assert finding.level is Level.OK


def test_the_timeouts_of_a_long_transaction_end_with_it(pool: Engine) -> None:
    with pool.begin() as connection:
        connection.execute(allow_long_transaction())
        session = scalar(connection, "SELECT pg_backend_pid()")
        assert scalar(connection, "SHOW statement_timeout") == "10min"
    with pool.begin() as connection:
        if scalar(connection, "SELECT pg_backend_pid()") == session:
            assert scalar(connection, "SHOW statement_timeout") == "10s"


def test_a_pooler_without_the_timeouts_is_found(services: Services) -> None:
    with Bouncer(services) as running:
        running.config.write_text(re.sub(r" connect_query='.*'", "", running.config.read_text()))
        running.start(running.url)
        engine = database_engine(running.url, pool_size=1)
        with engine.connect() as connection:
            finding = pooler(connection)
        engine.dispose()
    assert finding is not None
    assert finding.level is Level.WARNING
    assert "connect_query" in finding.advice


def test_a_pooler_that_refuses_options_is_one_sentence(services: Services) -> None:
    with Bouncer(services, ignore_startup_parameters="") as running:
        running.start(running.url)
        engine = database_engine(running.url, pool_size=1)
        with pytest.raises(Unreachable, match="ignore_startup_parameters"):
            check_schema(engine)
        engine.dispose()


def test_a_backup_runs_in_a_session_of_its_own_or_not_at_all(services: Services, tmp_path: Path) -> None:
    """pg_dump empties the search path of its session: statements of others would not find their tables there."""
    with Bouncer(services) as running:
        running.start(running.url)
        with pytest.raises(BackupFailed, match="pool_mode=session"):
            backup(running.url, tmp_path / "files", tmp_path / "shared")
        backup(f"{running.url}_session", tmp_path / "files", tmp_path / "own")
    assert (tmp_path / "own" / "database.dump").is_file()
    assert not (tmp_path / "shared").exists()
