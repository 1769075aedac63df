"""Each misconfiguration is found, and explained with what to do: in the settings, the queue, the database, the files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import Connection, text

from cli.doctor import database as database_findings
from cli.doctor import machine
from cli.doctor import queue as queue_findings
from cli.doctor import settings as settings_findings
from cli.doctor.findings import Finding, Level
from cli.stack.services import Services
from core.file_store import FileStore
from core.settings import Settings
from db import workers
from db.workers import EngineReport, WorkerReport
from tests.support.command import millrace
from tests.support.rows import make_file
from tests.support.stack import StackProcess
from workers.context import Database


def settings_of(**changes: Any) -> Settings:
    return Settings(database_url="postgresql://x/y", redis_url="redis://z").model_copy(update=changes)


def only(findings: list[Finding], level: Level) -> list[str]:
    return [f"{finding.name}: {finding.message}" for finding in findings if finding.level is level]


@pytest.mark.parametrize(
    ("changes", "level", "said"),
    [
        ({"heartbeat_seconds": 30.0}, Level.BAD, "heartbeat_seconds (30) is not less than half of lease_seconds (60)"),
        ({"commit_seconds": 31.0}, Level.BAD, "results may come too late"),
        ({"poll_seconds": 40.0}, Level.WARNING, "/readyz calls healthy workers silent"),
        ({"drain_seconds": 61.0}, Level.WARNING, "drain_seconds (61) is more than lease_seconds (60)"),
        ({"chat_timeout_seconds": 601.0}, Level.WARNING, "clients give up after 600"),
    ],
)
def test_times_that_contradict_each_other_are_found(changes: dict[str, Any], level: Level, said: str) -> None:
    (finding,) = settings_findings.timing(settings_of(**changes))
    assert finding.level is level
    assert said in finding.message
    assert "MILLRACE_" in finding.advice or "Set" in finding.advice


def test_the_times_that_come_along_agree() -> None:
    assert only(settings_findings.timing(settings_of()), Level.OK)


@pytest.mark.parametrize(
    ("host", "is_open", "has_key", "level"),
    [
        ("127.0.0.1", False, False, Level.OK),
        ("0.0.0.0", False, True, Level.OK),
        ("0.0.0.0", True, True, Level.OK),
        ("0.0.0.0", True, False, Level.WARNING),
        ("0.0.0.0", False, False, Level.BAD),
        ("0.0.0.0", False, None, Level.WARNING),
    ],
)
def test_a_door_that_is_open_is_found(host: str, is_open: bool, has_key: bool | None, level: Level) -> None:
    finding = settings_findings.door(settings_of(host=host, open_without_keys=is_open), has_key=has_key)
    assert finding.level is level
    assert level is Level.OK or "millrace keys create" in finding.advice


def test_webhooks_to_anywhere_are_found() -> None:
    assert settings_findings.webhooks(settings_of(webhook_hosts="a.example, *")).level is Level.WARNING
    assert settings_findings.webhooks(settings_of(webhook_hosts="*.example.com")).level is Level.OK
    assert settings_findings.webhooks(settings_of()).message == "off, as no host is named"


def test_few_open_files_are_found() -> None:
    levels = [settings_findings.open_files(number).level for number in (64, 1024, 65536)]
    assert levels == [Level.BAD, Level.WARNING, Level.OK]


def test_directories_that_others_may_enter_are_found(tmp_path: Path) -> None:
    settings = settings_of(state_dir=tmp_path / "state", files_dir=tmp_path / "files")
    for path in (settings.state_dir, settings.files_root):
        path.mkdir(mode=0o700)
    assert only(settings_findings.privacy(settings), Level.OK)
    settings.files_root.chmod(0o750)
    (said,) = only(settings_findings.privacy(settings), Level.WARNING)
    assert "file store" in said
    assert "0750" in said


def test_a_model_file_that_is_none_is_found(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("<html>not found</html>")
    (tmp_path / "bad.yaml").write_text("name: bad\nparameters: {model: bad.gguf}\n")
    (said,) = only(machine.models(tmp_path), Level.BAD)
    assert said.startswith("model bad")


def test_two_models_of_one_name_are_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("name: same\nbackend: fake\n")
    (said,) = only(machine.models(tmp_path), Level.BAD)
    assert "same" in said


@pytest.fixture
def tuned(valkey: redis.Redis) -> Iterator[redis.Redis]:
    before = {**valkey.config_get("maxmemory-policy"), **valkey.config_get("maxmemory")}
    yield valkey
    for name, value in before.items():
        valkey.config_set(name, value)


def test_a_queue_that_would_forget_or_is_nearly_full_is_found(services: Services, tuned: redis.Redis) -> None:
    assert {finding.level for finding in queue_findings.look(services.redis_url)} == {Level.OK}
    tuned.config_set("maxmemory-policy", "allkeys-lru")
    tuned.config_set("maxmemory", int(tuned.info()["used_memory"] * 1.1))
    findings = {finding.name: finding for finding in queue_findings.look(services.redis_url)}
    assert findings["queue eviction"].level is Level.BAD
    assert "noeviction" in findings["queue eviction"].advice
    assert findings["queue memory"].level is not Level.OK


def test_an_old_queue_is_found_and_a_valkey_is_not_taken_for_one() -> None:
    assert queue_findings.version({"redis_version": "6.0.16"}).level is Level.BAD
    valkey = {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2"}
    assert queue_findings.version(valkey).message == "valkey 9.1.2"


def test_a_queue_that_is_not_there_is_found() -> None:
    (finding,) = queue_findings.look("redis://127.0.0.1:9/0")
    assert finding.level is Level.BAD
    (finding,) = queue_findings.look("redis:/127.0.0.1")
    assert finding.level is Level.BAD


def test_a_good_database_has_nothing_to_be_found(settings: Settings, database: Database) -> None:
    findings, has_key = database_findings.look(settings, settings.database_url or "")
    assert [finding.name for finding in findings] == ["database", "connections", "clock", "workers", "files"]
    assert {finding.level for finding in findings} == {Level.OK}
    assert has_key is False


def test_a_database_without_our_schema_is_asked_no_more_than_it_can_answer(
    settings: Settings, database: Database
) -> None:
    bare = (settings.database_url or "").replace("/millrace?", "/postgres?")
    findings, has_key = database_findings.look(settings, bare)
    assert [finding.name for finding in findings] == ["database", "connections", "clock"]
    assert has_key is None
    assert database_findings.look(settings, "postgresql://nobody@127.0.0.1:9/none") == ([], None)


def test_connections_that_others_take_are_counted(connection: Connection, services: Services) -> None:
    assert database_findings.connections(connection).level is Level.OK
    most = int(connection.execute(text("SHOW max_connections")).scalar_one())
    strangers = [psycopg.connect(services.database_url) for _ in range(most - 55)]
    try:
        connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        finding = database_findings.connections(connection)
        assert finding.level is Level.WARNING
        assert "max_connections" in finding.advice
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_clock_that_is_wrong_is_found(connection: Connection) -> None:
    assert database_findings.clock(connection).level is Level.OK
    late = database_findings.clock(connection, lambda: time.time() - 3600)
    assert late.level is Level.WARNING
    assert "3600" in late.message


def enter(connection: Connection, kind: str, host: str = "elsewhere") -> None:
    engines = [] if kind == "clerk" else [EngineReport(model="fake", tick_seconds=0)]
    report = WorkerReport(id=kind, kind=kind, host=host, pid=7, poll_seconds=1, engines=engines)
    connection.execute(workers.report_worker(report))
    if engines:
        connection.execute(workers.report_engines(report))


def test_a_model_without_a_worker_and_a_worker_without_a_pulse_are_found(
    connection: Connection, settings: Settings
) -> None:
    for kind in ("chat", "batch", "clerk"):
        enter(connection, kind)
    assert [f.message for f in database_findings.workers(connection, settings)] == ["3 processes on elsewhere"]
    connection.execute(text("UPDATE workers SET seen_at = now() - interval '90 s' WHERE kind = 'batch'"))
    findings = database_findings.workers(connection, settings)
    assert only(findings, Level.BAD) == ["model fake: its batch worker was last heard of 90 s ago"]
    assert only(findings, Level.WARNING) == ["workers: batch 7 on elsewhere was last heard of 90 s ago"]


def test_a_file_store_that_is_not_the_one_others_write_to_is_found(connection: Connection, settings: Settings) -> None:
    file_id = make_file(connection)
    (finding,) = database_findings.files(connection, settings)
    assert finding.level is Level.BAD
    assert "MILLRACE_FILES_DIR" in finding.advice
    with FileStore(settings.files_root).write(file_id) as stream:
        stream.write(b"x")
    (finding,) = database_findings.files(connection, settings)
    assert finding.level is Level.OK


def test_a_file_store_that_cannot_be_written_to_is_found(
    connection: Connection, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    (finding,) = database_findings.files(connection, settings)
    assert finding.level is Level.BAD


def test_a_running_stack_is_looked_into(server: StackProcess, tmp_path: Path) -> None:
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
