"""Each misconfiguration is found, and explained with what to do: in the settings, the queue, the database, the files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import Connection, text

from cli.doctor import database, files
from cli.doctor.database import database_findings
from cli.doctor.findings import Finding, Level
from cli.doctor.queue import queue_findings
from cli.stack.services import Services
from core.files.open_store import open_file_store
from core.settings import Settings
from db import workers
from db.workers import EngineReport, WorkerReport
from tests.support.command import millrace
from tests.support.rows import make_file
from tests.support.stack import StackProcess
from workers.context import Database


def only(findings: list[Finding], level: Level) -> list[str]:
    return [f"{finding.name}: {finding.message}" for finding in findings if finding.level is level]


@pytest.fixture
def tuned(valkey: redis.Redis) -> Iterator[redis.Redis]:
    before = {**valkey.config_get("maxmemory-policy"), **valkey.config_get("maxmemory")}
    yield valkey
    for name, value in before.items():
        valkey.config_set(name, value)  # type: ignore[arg-type]


def test_a_queue_that_evicts_or_is_nearly_full_is_found(services: Services, tuned: redis.Redis) -> None:
    assert {finding.level for finding in queue_findings(services.redis_url)} == {Level.OK}
    tuned.config_set("maxmemory-policy", "allkeys-lru")
    tuned.config_set("maxmemory", int(tuned.info()["used_memory"] * 1.1))
    findings = {finding.name: finding for finding in queue_findings(services.redis_url)}
    assert findings["queue eviction"].level is Level.BAD
    assert "noeviction" in findings["queue eviction"].advice
    assert findings["queue memory"].level is not Level.OK


def test_a_healthy_database_has_no_bad_findings(settings: Settings, database: Database) -> None:
    findings, has_key = database_findings(settings, settings.database_url or "")
    assert [finding.name for finding in findings] == ["database", "connections", "clock", "workers"]
    assert {finding.level for finding in findings} == {Level.OK}
    assert has_key is False


def test_a_database_without_the_schema_gets_only_the_general_checks(settings: Settings, database: Database) -> None:
    bare = (settings.database_url or "").replace("/millrace?", "/postgres?")
    findings, has_key = database_findings(settings, bare)
    assert [finding.name for finding in findings] == ["database", "connections", "clock"]
    assert has_key is None
    assert database_findings(settings, "postgresql://nobody@127.0.0.1:9/none") == ([], None)


def test_connections_of_other_programs_are_counted(connection: Connection, services: Services) -> None:
    assert database.connections(connection).level is Level.OK
    most = int(connection.execute(text("SHOW max_connections")).scalar_one())
    strangers = [psycopg.connect(services.database_url) for _ in range(most - 55)]
    try:
        connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        finding = database.connections(connection)
        assert finding.level is Level.WARNING
        assert "max_connections" in finding.advice
        assert database.connections(connection, num_devices=4).level is Level.BAD
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_clock_that_is_wrong_is_found(connection: Connection) -> None:
    assert database.clock(connection).level is Level.OK
    late = database.clock(connection, lambda: time.time() - 3600)
    assert late.level is Level.WARNING
    assert "3600" in late.message


def enter(connection: Connection, kind: str, host: str = "elsewhere") -> None:
    engines = [] if kind == "clerk" else [EngineReport(model="fake", tick_seconds=0)]
    report = WorkerReport(id=kind, kind=kind, host=host, pid=7, poll_seconds=1, engines=engines)
    connection.execute(*workers.report_worker(report))


def test_a_model_without_a_worker_and_a_silent_worker_are_found(connection: Connection, settings: Settings) -> None:
    for kind in ("chat", "batch", "clerk"):
        enter(connection, kind)
    assert [f.message for f in database.workers(connection, settings)] == ["3 processes on elsewhere"]
    connection.execute(text("UPDATE workers SET seen_at = now() - interval '90 s' WHERE kind = 'batch'"))
    findings = database.workers(connection, settings)
    assert only(findings, Level.BAD) == ["model fake: its batch worker sent its last heartbeat 90 s ago"]
    assert only(findings, Level.WARNING) == ["workers: batch 7 on elsewhere last reported 90 s ago"]


def test_hosts_with_different_models_are_found(connection: Connection, settings: Settings) -> None:
    for host, models in (("gpu-a", ("fake", "large")), ("gpu-b", ("fake",))):
        engines = [EngineReport(model=name, tick_seconds=0) for name in models]
        report = WorkerReport(id=host, kind="chat", host=host, pid=7, poll_seconds=1, engines=engines)
        connection.execute(*workers.report_worker(report))
    found = only(database.workers(connection, settings), Level.WARNING)
    assert found == [
        "models of hosts: workers serve large, and no file of models_dir here describes it",
        "models of hosts: gpu-a serves fake, large; gpu-b serves fake",
    ]
    connection.execute(text("UPDATE workers SET seen_at = now() - interval '90 s' WHERE host = 'gpu-a'"))
    assert not [each for each in only(database.workers(connection, settings), Level.WARNING) if "models of" in each]


def test_a_file_store_that_hosts_do_not_share_is_found(connection: Connection, settings: Settings) -> None:
    file_id = make_file(connection)
    (finding,) = files.newest_file(connection, settings)
    assert finding.level is Level.BAD
    assert "MILLRACE_FILES_DIR" in finding.advice
    with open_file_store(settings).write(file_id) as stream:
        stream.write(b"x")
    (finding,) = files.newest_file(connection, settings)
    assert finding.level is Level.OK


def test_a_running_stack_is_checked(server: StackProcess, tmp_path: Path) -> None:
    done = millrace(
        "doctor",
        "--state-dir",
        server.state_dir,
        "--models-dir",
        server.folder / "models",
        cwd=tmp_path,
        MILLRACE_PORT="0",
    )
    assert done.returncode == 0, done.stdout
    for said in ("database: Postgres 18", "queue: valkey 9", "clock: this machine", "workers: 4 processes on"):
        assert said in done.stdout
