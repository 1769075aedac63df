"""The command as a user types it, against a running server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import psutil
import psycopg

from tests.support.command import MILLRACE, millrace
from tests.support.stack import StackProcess, batch_lines, clean_environment, wait_for, write_lines


def run(server: StackProcess, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return millrace("run", "in.jsonl", "-o", "out.jsonl", "--base-url", f"{server.url}/v1", *more, cwd=folder)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_goes_in_and_its_answers_come_out(server: StackProcess, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", batch_lines(30))
    done = run(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("30 of 30 lines answered")
    assert [line["custom_id"] for line in read(tmp_path / "out.jsonl")] == [f"line-{n}" for n in range(30)]
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_failed_lines_are_saved_beside_the_answers_and_change_the_exit_code(
    server: StackProcess, tmp_path: Path
) -> None:
    lines = batch_lines(4)
    lines[2]["body"] = {"model": "fake"}
    write_lines(tmp_path / "in.jsonl", lines)
    done = run(server, tmp_path)
    assert done.returncode == 3
    assert "1 failed line: out.errors.jsonl" in done.stdout
    assert [line["custom_id"] for line in read(tmp_path / "out.errors.jsonl")] == ["line-2"]


def test_a_file_that_cannot_be_read_is_explained_line_by_line(server: StackProcess, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(batch_lines(1)[0]) + "\n{oops\n")
    done = run(server, tmp_path)
    assert done.returncode == 4
    assert "Line 2 is not valid JSON" in done.stdout


def test_an_option_overrides_the_model_of_every_line(server: StackProcess, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", batch_lines(3, "gpt-4o-mini"))
    assert run(server, tmp_path).returncode == 3
    assert run(server, tmp_path, "--model", "fake", "--force").returncode == 0


def test_an_interrupted_run_prints_the_command_that_resumes_it(server: StackProcess, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", batch_lines(40, "slow", max_tokens=40))
    command = [MILLRACE, "run", "in.jsonl", "-o", "out.jsonl", "--base-url", f"{server.url}/v1"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("in_progress"):
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    printed = said.splitlines()[-1]
    assert "--resume batch_" in printed
    (tmp_path / "out.jsonl").write_text("of another batch\n")
    refused = shell(printed, tmp_path)
    assert (refused.returncode, "exists already" in refused.stderr) == (2, True)
    (tmp_path / "out.jsonl").unlink()
    done = shell(printed, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "out.jsonl")) == 40
    again = shell(printed, tmp_path)
    assert again.returncode == 0, "a run may replace its own answers"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line as it was printed, in a shell."""
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_an_input_and_an_earlier_result_are_not_overwritten(server: StackProcess, tmp_path: Path) -> None:
    lines = batch_lines(4)
    lines[2]["body"] = {"model": "fake"}
    source = write_lines(tmp_path / "in.jsonl", lines)
    before = source.read_bytes()
    base = ("--base-url", f"{server.url}/v1")
    assert millrace("run", "in.jsonl", "-o", "./in.jsonl", "--force", *base, cwd=tmp_path).returncode == 2
    (tmp_path / "out.errors.jsonl").symlink_to("in.jsonl")
    refused = run(server, tmp_path, "--force")
    assert (refused.returncode, "out.errors.jsonl is the input file" in refused.stderr) == (2, True)
    assert source.read_bytes() == before
    (tmp_path / "out.errors.jsonl").unlink()
    assert run(server, tmp_path).returncode == 3
    again = run(server, tmp_path)
    assert again.returncode == 2
    assert "out.jsonl and out.errors.jsonl exist already" in again.stderr
    assert run(server, tmp_path, "--force").returncode == 3


def test_answers_go_to_a_pipe_and_lines_come_from_one(server: StackProcess, tmp_path: Path) -> None:
    content = write_lines(tmp_path / "in.jsonl", batch_lines(3)).read_text()
    done = millrace("run", "-", "-o", "-", "--base-url", server.url, cwd=tmp_path, stdin=content)
    assert [json.loads(line)["custom_id"] for line in done.stdout.splitlines()] == [f"line-{n}" for n in range(3)]
    assert "3 of 3 lines answered" in done.stderr


def test_the_database_is_upgraded_and_checked(tmp_path: Path) -> None:
    refused = millrace("db", "check", "--state-dir", "state", cwd=tmp_path)
    assert refused.returncode == 1
    assert "millrace db upgrade" in refused.stderr
    made = millrace("db", "upgrade", "--create-key", "--state-dir", "state", cwd=tmp_path)
    assert made.returncode == 0
    assert re.search(r"^The first API key, shown only now: sk-\S+$", made.stdout, re.MULTILINE)
    assert millrace("db", "check", "--state-dir", "state", cwd=tmp_path).returncode == 0


def test_a_check_waits_for_the_upgrade_of_a_database(tmp_path: Path, services) -> None:
    admin = services.database_url.replace("/millrace?", "/postgres?")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS awaited")
        connection.execute("CREATE DATABASE awaited")
    url = {"DATABASE_URL": services.database_url.replace("/millrace?", "/awaited?")}
    late = millrace("db", "check", "--wait", "1.5", cwd=tmp_path, **url)
    assert (late.returncode, "The database has no tables yet" in late.stderr) == (1, True)
    command = [MILLRACE, "db", "check", "--wait", "60"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment() | url, stdout=subprocess.PIPE, text=True
    ) as waiting:
        keyed = [millrace("db", "upgrade", "--create-key", cwd=tmp_path, **url).stdout for _ in range(2)]
        assert waiting.wait(60) == 0
    assert ["The first API key" in each for each in keyed] == [True, False]


def test_a_process_on_an_old_schema_refuses_to_start(tmp_path: Path, services) -> None:
    admin = services.database_url.replace("/millrace?", "/postgres?")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS bare")
        connection.execute("CREATE DATABASE bare")
    url = services.database_url.replace("/millrace?", "/bare?")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "fake.yaml").write_text("name: fake\nbackend: fake\n")
    settings = {
        "DATABASE_URL": url,
        "REDIS_URL": services.redis_url,
        "MILLRACE_STATE_DIR": str(tmp_path / "state"),
        "MILLRACE_MODELS_DIR": str(tmp_path / "models"),
        "MILLRACE_PORT": "0",
    }
    for name in ("api", "worker", "clerk"):
        done = millrace(name, cwd=tmp_path, **settings)
        assert done.returncode != 0, name
        assert "millrace db upgrade" in done.stderr, (name, done.stderr[-500:])


def test_serve_ends_on_sigterm_while_its_processes_start_and_starts_again_after_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "fake.yaml").write_text("name: fake\nbackend: fake\n")
    stack = StackProcess(tmp_path, tmp_path / "models")
    command = [MILLRACE, "serve", "--port", "0", "--state-dir", str(stack.state_dir), "--models-dir", "models"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for((stack.state_dir / "logs" / "api.log").exists, "the api starts")
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (143, "millrace: Stopped before it was ready.\n")
    assert psutil.wait_procs(children, 5)[1] == []
    stack.start()
    try:
        used = millrace("models", "--json", cwd=tmp_path, MILLRACE_STATE_DIR=str(stack.state_dir))
        assert used.returncode == 0, "the server of this machine is found without its address"
        write_lines(tmp_path / "in.jsonl", batch_lines(2))
        done = millrace("run", "in.jsonl", "-o", "out.jsonl", "--state-dir", str(stack.state_dir), cwd=tmp_path)
        assert done.stdout.endswith("2 of 2 lines answered\n")
    finally:
        stack.close()
