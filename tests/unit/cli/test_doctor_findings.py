"""Findings of `millrace doctor` that need no service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.doctor import devices, machine, queue
from cli.doctor import settings as settings_findings
from cli.doctor.findings import Finding, Level
from cli.doctor.queue import queue_findings
from core.cpu_cores import Cores
from core.devices.inventory import Inventory
from core.settings import Settings


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
def test_contradicting_times_are_found(changes: dict[str, Any], level: Level, said: str) -> None:
    (finding,) = settings_findings.timing(settings_of(**changes))
    assert finding.level is level
    assert said in finding.message
    assert "MILLRACE_" in finding.advice or "Set" in finding.advice


def test_the_default_times_agree() -> None:
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
def test_open_access_is_found(host: str, is_open: bool, has_key: bool | None, level: Level) -> None:
    finding = settings_findings.access(settings_of(host=host, open_without_keys=is_open), has_key=has_key)
    assert finding.level is level
    assert level is Level.OK or "millrace keys create" in finding.advice


def test_webhooks_to_anywhere_are_found() -> None:
    assert settings_findings.webhooks(settings_of(webhook_hosts="a.example, *")).level is Level.WARNING
    assert settings_findings.webhooks(settings_of(webhook_hosts="*.example.com")).level is Level.OK
    assert settings_findings.webhooks(settings_of()).message == "off: no host is named"


def test_few_open_files_are_found() -> None:
    levels = [settings_findings.open_files(number).level for number in (64, 1024, 65536)]
    assert levels == [Level.BAD, Level.WARNING, Level.OK]


def test_directories_that_other_users_may_enter_are_found(tmp_path: Path) -> None:
    settings = settings_of(state_dir=tmp_path / "state", files_dir=tmp_path / "files")
    for path in (settings.state_dir, tmp_path / "files"):
        path.mkdir(mode=0o700)
    assert only(settings_findings.privacy(settings), Level.OK)
    (tmp_path / "files").chmod(0o750)
    (said,) = only(settings_findings.privacy(settings), Level.WARNING)
    assert "file store" in said
    assert "0750" in said


def test_a_model_file_that_is_none_is_found(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("<html>not found</html>")
    (tmp_path / "bad.yaml").write_text("name: bad\nparameters: {model: bad.gguf}\n")
    (said,) = only(machine.models(tmp_path), Level.BAD)
    assert said.startswith("model bad")


def test_a_fallback_that_is_no_model_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nbackend: fake\nfallback: [b-too, gone]\n")
    (tmp_path / "b.yaml").write_text("name: b\nbackend: fake\naliases: [b-too]\n")
    warnings = [finding for finding in machine.models(tmp_path) if finding.level is Level.WARNING]
    assert [(each.name, each.message) for each in warnings] == [("model a", "its fallback gone is not served here")]


def test_two_models_of_one_name_are_found(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("name: same\nbackend: fake\n")
    (said,) = only(machine.models(tmp_path), Level.BAD)
    assert "same" in said


def test_every_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("name: [")
    (tmp_path / "lost.yaml").write_text("name: lost\nparameters: {model: lost.gguf}\n")
    (tmp_path / "bare.gguf").write_text("<html>not found</html>")
    (tmp_path / "good.yaml").write_text("name: good\nbackend: fake\n")
    found = machine.models(tmp_path)
    bad = only(found, Level.BAD)
    assert [text.partition(":")[0] for text in bad] == ["file a.yaml", "file b.yaml", "file lost.yaml"]
    assert "lost.gguf" in bad[2]
    (warned,) = only(found, Level.WARNING)
    assert "it is a web page: download the file behind it" in warned
    assert any(each.name == "model good" for each in found)


def test_an_old_queue_is_found_and_a_valkey_is_not_taken_for_one() -> None:
    assert queue.version({"redis_version": "6.0.16"}).level is Level.BAD
    valkey = {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2"}
    assert queue.version(valkey).message == "valkey 9.1.2"


def test_a_queue_that_is_not_there_is_found() -> None:
    (finding,) = queue_findings("redis://127.0.0.1:9/0")
    assert finding.level is Level.BAD
    (finding,) = queue_findings("redis:/127.0.0.1")
    assert finding.level is Level.BAD


def test_the_threads_of_a_model_are_reported_with_their_reason() -> None:
    finding = devices.devices(
        Inventory(devices=(), cpus=(0,)), Cores(cpus=((0, 4), (1, 5), (2, 6), (3, 7)), quota=1.5)
    )[0]
    assert finding.level is Level.OK
    assert finding.message == "2 per model: this process may use 8 CPUs on 4 cores, with a quota of 1.5 CPUs"
