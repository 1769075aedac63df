"""Commands that need no server: help, errors and progress."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.batches.results import error_path
from tests.support.command import millrace


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "no.jsonl", "-o", "out.jsonl"], 2, "There is no file no.jsonl"),
        (["run", "in.jsonl", "-o", "no/out.jsonl"], 2, "no folder no"),
        (["run", "in.jsonl", "-o", "out.jsonl", "--base-url", "http://127.0.0.1:9/v1"], 5, "There is no server at"),
        (["serve", "--models-dir", "nowhere"], 1, "no models folder"),
        (["api"], 1, "needs DATABASE_URL and REDIS_URL"),
        (["worker"], 1, "needs DATABASE_URL and REDIS_URL"),
        (["serve", "--port", "99999"], 1, "port"),
    ],
)
def test_errors_have_a_message_and_an_exit_code(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    done = millrace(*arguments, cwd=tmp_path)
    assert said in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = millrace("serve", "--port", str(taken.getsockname()[1]), "--state-dir", "state", cwd=tmp_path)
    assert done.returncode == 1
    assert "Is Millrace running already?" in done.stderr
    assert not (tmp_path / "state").exists()


def test_help_is_quick_because_nothing_heavy_is_loaded(tmp_path: Path) -> None:
    check = (
        "import sys; import cli.main; "
        "print([m for m in sys.modules if m.split('.')[0] in ('sqlalchemy', 'celery', 'llama_cpp', 'rich', 'fastapi')])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "sqlalchemy" not in done.stdout
    assert "celery" not in done.stdout


def test_the_error_file_lies_beside_the_answers() -> None:
    assert error_path(Path("a/out.jsonl")) == Path("a/out.errors.jsonl")
    assert error_path(Path("out")) == Path("out.errors.jsonl")
