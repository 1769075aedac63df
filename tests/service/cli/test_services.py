"""The launcher of Postgres and Valkey, in every situation it may meet."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest
import redis

from cli.stack.services import Services
from core.errors import ConfigError
from core.process.child_process import ChildFailed


def rows_survive_a_restart(state_dir: Path) -> None:
    with Services(state_dir) as services:
        with psycopg.connect(services.database_url) as connection:
            connection.execute("CREATE TABLE kept (x int)")
        with redis.Redis.from_url(services.redis_url) as client:
            assert client.ping()
    with Services(state_dir) as services, psycopg.connect(services.database_url) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


def test_data_survives_a_restart_and_no_port_is_opened(tmp_path: Path) -> None:
    rows_survive_a_restart(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_root_without_user_namespaces_runs_postgres_as_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_NO_USER_NAMESPACE", "1")
    monkeypatch.setenv("TMPDIR", "/tmp")
    mode = tmp_path.stat().st_mode
    rows_survive_a_restart(tmp_path / "state")
    home = Path((tmp_path / "state" / "postgres.location").read_text().strip())
    assert home.owner() == "nobody"
    assert home.stat().st_mode & 0o777 == 0o700
    assert tmp_path.stat().st_mode == mode, "directories that are not ours keep their modes"


def test_a_start_that_was_interrupted_leaves_no_half_cluster(tmp_path: Path) -> None:
    half = tmp_path / "postgres.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    with Services(tmp_path) as services, psycopg.connect(services.database_url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not half.exists()


def test_a_long_state_directory_still_has_short_sockets(tmp_path: Path) -> None:
    with Services(tmp_path / ("long-" * 24)) as services, psycopg.connect(services.database_url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_second_launcher_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    services = Services(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by a running Millrace .pid {os.getpid()}"):
        Services(tmp_path)
    services.stop()
    Services(tmp_path).stop()


def test_data_of_another_postgres_version_is_refused_with_advice(tmp_path: Path) -> None:
    with Services(tmp_path):
        pass
    version = next(iter(tmp_path.rglob("PG_VERSION")))
    version.write_text("15\n")
    services = Services(tmp_path)
    with pytest.raises(ConfigError, match="belongs to Postgres 15.*Dump it"):
        services.start()


def test_a_postgres_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    with Services(tmp_path):
        pass
    configuration = next(iter(tmp_path.rglob("postgresql.conf")))
    configuration.write_text("no_such_setting = 5\n")
    services = Services(tmp_path)
    with pytest.raises(ChildFailed, match="(?s)postgres ended with exit code.*no_such_setting"):
        services.start()


def test_external_addresses_replace_the_bundled_services(tmp_path: Path) -> None:
    with Services(tmp_path, "postgresql://mine/db", "redis://mine") as services:
        assert (services.database_url, services.redis_url) == ("postgresql://mine/db", "redis://mine")
        assert services.describe() == ["postgres: external (DATABASE_URL)", "valkey: external (REDIS_URL)"]
        assert not list(tmp_path.rglob("PG_VERSION"))


def test_a_service_that_was_killed_is_started_again(tmp_path: Path) -> None:
    with Services(tmp_path) as services:
        with redis.Redis.from_url(services.redis_url) as client:
            client.set("a", "b")
            process_id = client.info("server")["process_id"]
        services.check()
        os.kill(int(process_id), 9)
        while not (restarted := services.restart_dead()):
            pass
        assert restarted == ["valkey"]
        with redis.Redis.from_url(services.redis_url) as client:
            assert client.ping()
