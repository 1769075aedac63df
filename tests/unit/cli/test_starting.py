"""Servers that cannot be reached end each process with one sentence; a signal ends `serve` while it starts."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.stack.services import NoDatabase
from core.errors import Unreachable
from tests.support.command import MILLRACE, millrace
from tests.support.stack import clean_environment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "fake.yaml").write_text("name: fake\nbackend: fake\n")
    return tmp_path


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def settings(folder: Path, port: int) -> dict[str, str]:
    return {
        "DATABASE_URL": f"postgresql://me:secret@127.0.0.1:{port}/x",
        "REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "MILLRACE_STATE_DIR": str(folder / "state"),
        "MILLRACE_MODELS_DIR": str(folder / "models"),
        "MILLRACE_PORT": "0",
    }


@pytest.mark.parametrize("verb", ["serve", "api", "worker", "clerk"])
def test_a_database_that_is_not_there_ends_every_process_with_one_sentence(
    folder: Path, closed_port: int, verb: str
) -> None:
    done = millrace(*verb.split(), cwd=folder, **settings(folder, closed_port))
    said = done.stderr.splitlines()
    assert said[-1].endswith(
        f"The database at 127.0.0.1:{closed_port} cannot be used: connection refused. "
        "Start Postgres there, or correct DATABASE_URL."
    )
    assert len(said) <= 2, "a worker names the queue before"
    assert done.returncode == 5
    assert "secret" not in done.stderr


@pytest.mark.parametrize("verb", ["db check", "db upgrade", "keys list", "keys create"])
def test_a_database_that_is_not_there_ends_every_command_with_one_sentence(
    folder: Path, closed_port: int, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, verb.split(), env=settings(folder, closed_port))
    assert isinstance(done.exception, Unreachable)
    assert str(done.exception).startswith(
        f"The database at 127.0.0.1:{closed_port} cannot be used: connection refused."
    )


def test_serve_names_a_queue_that_is_not_there_before_anything_starts(folder: Path, closed_port: int) -> None:
    given = settings(folder, closed_port)
    del given["DATABASE_URL"]
    done = millrace("serve", cwd=folder, **given)
    assert done.returncode == 5
    assert f"The queue at 127.0.0.1:{closed_port} cannot be used: connection refused." in done.stderr
    assert not (folder / "state" / "postgres").exists()


def test_doctor_gives_reason_and_remedy(folder: Path, closed_port: int) -> None:
    done = millrace("doctor", cwd=folder, **settings(folder, closed_port))
    assert f"BAD   schema: The database at 127.0.0.1:{closed_port} cannot be used: connection refused" in done.stdout
    assert "→ Start Postgres there, or correct DATABASE_URL." in done.stdout
    assert f"BAD   queue: The queue at 127.0.0.1:{closed_port} cannot be used: connection refused" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_serve_while_it_waits_for_a_server(folder: Path, number: signal.Signals, code: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        given = settings(folder, silent.getsockname()[1])
        del given["DATABASE_URL"]
        with subprocess.Popen(
            [MILLRACE, "serve"],
            cwd=folder,
            env=clean_environment() | given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            client, _ = silent.accept()  # it connects, and gets no answer
            process.send_signal(number)
            _, said = process.communicate(timeout=2.5)
            client.close()
    assert (process.returncode, said) == (code, "millrace: Stopped before it was ready.\n")


def test_a_setting_that_is_misspelled_is_named_once(folder: Path) -> None:
    done = millrace("models", "--json", cwd=folder, MILLRACE_PROT="9", MILLRACE_STATE_DIR="state")
    assert done.stderr.splitlines()[0] == "millrace: there is no setting MILLRACE_PROT; did you mean 'MILLRACE_PORT'?"
    assert done.stderr.count("MILLRACE_PROT") == 1


def test_looking_at_a_new_state_directory_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for verb in ("db check", "keys revoke key_a", "keys rotate key_a", "keys cap team"):
        done = CliRunner().invoke(app, [*verb.split(), "--state-dir", "state"])
        assert isinstance(done.exception, NoDatabase), verb
        assert "in state yet. `millrace serve` or `millrace db upgrade` creates it" in str(done.exception)
    assert CliRunner().invoke(app, ["keys", "list", "--json", "--state-dir", "state"]).stdout == "[]\n"
    assert {path.name for path in folder.iterdir()} == {"models"}
