"""`millrace doctor` without a stack: machine, settings, state directory."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from pathlib import Path

import pytest

from cli.doctor import machine
from cli.doctor import stack as stack_findings
from cli.doctor.findings import Level
from cli.stack.services import Services
from tests.conftest import FAKE_MODEL
from tests.support.command import millrace
from tests.support.tiny_models import TinyModel, write_tiny_model


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "fake.yaml").write_text(FAKE_MODEL)
    return folder


def test_a_machine_that_can_run_it_gets_exit_code_0(tmp_path: Path, models: Path) -> None:
    done = millrace("doctor", "--json", "--models-dir", models, "--state-dir", "state", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    names = [finding["name"] for finding in json.loads(done.stdout)]
    assert names == [
        "python", "compiler", "device cpu", "threads", "gpu", "disk", "port", "model fake", "memory", "postgres", "valkey",
        "state", "schema", "files", "timing", "webhooks", "open files", "privacy", "access",
    ]  # fmt: skip
    assert not (tmp_path / "state").exists(), "looking changes nothing"


def test_a_bad_finding_has_an_exit_code_and_advice(tmp_path: Path) -> None:
    done = millrace("doctor", "--models-dir", "nowhere", "--state-dir", "state", cwd=tmp_path)
    assert done.returncode == 1
    assert "BAD   models: There is no models folder" in done.stdout
    assert "→ Create it, or name another folder with --models-dir." in done.stdout


def test_a_wrong_setting_is_a_finding(tmp_path: Path) -> None:
    done = millrace("doctor", "--json", cwd=tmp_path, MILLRACE_PORT="many")
    assert done.returncode == 1
    assert json.loads(done.stdout)[-1]["name"] == "settings"


def test_a_port_that_is_taken_is_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert machine.port("127.0.0.1", taken.getsockname()[1]).level is Level.WARNING


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (b'{"version": "1.2"}', Level.OK),
        (b'{"version": 1}', Level.WARNING),
        (b"<html>", Level.WARNING),
        (b"[]", Level.WARNING),
    ],
)
def test_a_port_on_which_a_millrace_answers_is_no_problem(answer: bytes, level: Level) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n"
                connection.sendall(head.encode() + answer)

        thread = threading.Thread(target=serve)
        thread.start()
        finding = machine.port("127.0.0.1", server.getsockname()[1])
        thread.join()
    assert finding.level is level
    assert ("version 1.2" in finding.message) is (level is Level.OK)


def test_models_larger_than_memory_are_found(tmp_path: Path) -> None:
    (tmp_path / "big.gguf").write_bytes(b"0" * 4096)
    (tmp_path / "big.yaml").write_text("name: big\nparameters: {model: big.gguf}\n")
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 3 kB\n")
    *_, memory = machine.models(tmp_path, meminfo)
    assert (memory.level, memory.name) == (Level.WARNING, "memory")
    meminfo.write_text("MemAvailable: 5 kB\n")
    assert machine.models(tmp_path, meminfo)[-1].level is Level.OK


def test_a_full_disk_and_a_missing_compiler_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    for free, level in ((1 << 40, Level.OK), (1 << 30, Level.WARNING), (1 << 20, Level.BAD)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert machine.disk(tmp_path / "state").level is level
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.compiler().level is Level.WARNING


def test_a_state_directory_is_new_in_use_left_over_or_free(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert "is new" in stack_findings.state(folder).message
    services = Services(folder)
    assert "in use by a running Millrace" in stack_findings.state(folder).message
    services.stop()
    assert "not in use" in stack_findings.state(folder).message
    (folder / "postgres").mkdir()
    (folder / "postgres" / "postmaster.pid").write_text("1\n")
    assert stack_findings.state(folder).level is Level.WARNING


def test_a_model_file_that_is_cut_and_one_without_a_chat_template_are_found(tmp_path: Path) -> None:
    whole = write_tiny_model(tmp_path / "base.gguf", TinyModel.LLAMA).read_bytes()
    (tmp_path / "base.gguf").write_bytes(whole.replace(b"tokenizer.chat_template", b"tokenizer.chat_forgotten"[:23]))
    (tmp_path / "cut.gguf").write_bytes(whole[:-4096])
    for name, more in (("base", ""), ("cut", ""), ("own", 'chat_template: "{{ messages }}"\n')):
        file = "cut" if name == "cut" else "base"
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nparameters: {{model: {file}.gguf}}\n{more}")
    found = [(each.level, each.name, each.message) for each in machine.models(tmp_path) if each.level is not Level.OK]
    (base, cut) = found
    assert base[:2] == (Level.WARNING, "model base")
    assert "no chat template" in base[2]
    assert cut[:2] == (Level.BAD, "model cut")
    assert "corrupted or incomplete" in cut[2]
