"""Signs of life: locks that end with a process, and what `millrace health` makes of them."""

from __future__ import annotations

import ast
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli.commands.health import health, problem_of
from cli.errors import CommandFailed
from core.process.runtime_dirs import socket_directory_path
from core.process.signs_of_life import Phase, Role, Sign, SignsOfLife
from tests.support.clock import Clock

CHILD = """
import sys
from pathlib import Path
from core.process.signs_of_life import Phase, Role, SignsOfLife
signs = SignsOfLife(Path(sys.argv[1]), Role(sys.argv[2]), sys.argv[3])
signs.give()
print("given", flush=True)
if sys.stdin.readline():
    signs.give(Phase.STOPPING)
"""


class Process:
    """A process that gives signs, and stops, as it should, at a line on its standard input."""

    def __init__(self, state_dir: Path, role: Role, name: str = "") -> None:
        command = [sys.executable, "-c", CHILD, str(state_dir), role, name]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._child.pid
        assert self._child.stdout
        assert self._child.stdout.readline() == "given\n"

    def stop(self) -> None:
        self._child.communicate("stop\n")

    def kill(self) -> None:
        self._child.send_signal(signal.SIGKILL)
        self._child.communicate()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def run(role: Role, name: str = "") -> Process:
        started.append(Process(tmp_path, role, name))
        return started[-1]

    yield run
    for process in started:
        process.kill()


def problem(state_dir: Path, role: Role | None = None, device: str | None = None) -> str:
    with pytest.raises(CommandFailed) as caught:
        health(role, device, state_dir)
    assert caught.value.code == 1
    return str(caught.value)


def fine(
    capsys: pytest.CaptureFixture[str], state_dir: Path, role: Role | None = None, device: str | None = None
) -> str:
    health(role, device, state_dir)
    return capsys.readouterr().out


def test_a_host_where_nothing_runs_is_not_healthy(tmp_path: Path) -> None:
    assert problem(tmp_path, Role.CLERK) == f"No clerk runs on this host with the state directory {tmp_path}."
    assert "No worker of cuda:0 runs" in problem(tmp_path, Role.WORKER, "cuda:0")
    assert problem(tmp_path).startswith("Nothing of Millrace runs")
    assert list(tmp_path.iterdir()) == [], "a question writes nothing"


def test_a_process_that_works_is_healthy_until_it_is_killed(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    clerk = start(Role.CLERK)
    assert fine(capsys, tmp_path, Role.CLERK) == f"The clerk (process {clerk.pid}) works.\n"
    clerk.kill()
    assert problem(tmp_path, Role.CLERK) == f"The clerk (process {clerk.pid}) has ended without a shutdown."
    assert "has ended without a shutdown" in problem(tmp_path)


def test_a_process_that_was_stopped_is_not_missed_where_another_runs(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = start(Role.CLERK), start(Role.CLERK)
    assert f"process {first.pid}), the clerk (process {second.pid})" in fine(capsys, tmp_path, Role.CLERK)
    first.stop()
    assert fine(capsys, tmp_path) == f"The clerk (process {second.pid}) works.\n"
    second.stop()
    assert problem(tmp_path, Role.CLERK).endswith("was stopped.")
    assert problem(tmp_path).startswith("Nothing of Millrace runs")


def test_a_successor_takes_the_place_of_those_that_were_killed(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    for process in [start(Role.CLERK), start(Role.CLERK), start(Role.CLERK)]:
        process.kill()
    heir = start(Role.CLERK)
    assert fine(capsys, tmp_path) == f"The clerk (process {heir.pid}) works.\n"


def test_workers_are_asked_by_device(tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = start(Role.WORKER, "cuda:0"), start(Role.WORKER, "cpu@0-3,8-11")
    assert fine(capsys, tmp_path, Role.WORKER, "cuda:0") == f"The worker of cuda:0 (process {one.pid}) works.\n"
    two.kill()
    assert fine(capsys, tmp_path, Role.WORKER, "cuda:0")
    assert problem(tmp_path, Role.WORKER).startswith(f"The worker of cpu@0-3,8-11 (process {two.pid}) has ended")


SIGN = Sign(role=Role.CLERK, pid=7, phase=Phase.READY, at=1000.0, within=30.0, is_running=True)


@pytest.mark.parametrize(
    ("changes", "now", "said"),
    [
        ({}, 1030.0, ""),
        ({}, 1031.0, "is stuck or frozen: its last sign of life is 31 s old"),
        ({"phase": Phase.STARTING}, 1001.0, "is starting"),
        ({"phase": Phase.STOPPING}, 1001.0, "is stopping"),
        ({"phase": Phase.STOPPING, "is_running": False}, 2000.0, "was stopped"),
        ({"phase": Phase.STARTING, "is_running": False}, 1001.0, "has ended without a shutdown"),
        ({"problem": "its chat process has ended"}, 1001.0, "does not work: its chat process has ended"),
    ],
)
def test_each_trouble_has_its_words(changes: dict[str, Any], now: float, said: str) -> None:
    assert problem_of(msgspec.structs.replace(SIGN, **changes), now) == said


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers /healthz alone."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


def test_an_api_is_called_at_its_address() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        here = msgspec.structs.replace(SIGN, role=Role.API, url=f"http://0.0.0.0:{port}")
        assert problem_of(here, 1001.0) == ""
        server.shutdown()
    assert problem_of(here, 1001.0).startswith(f"does not answer at http://0.0.0.0:{port}: [Errno 111]")


def test_signs_are_written_when_they_differ_or_are_old(tmp_path: Path) -> None:
    clock = Clock(500.0)
    signs = SignsOfLife(tmp_path, Role.WORKER, "cpu", clock=clock)

    def last() -> tuple[Phase, float, str]:
        sign = msgspec.json.decode(next(socket_directory_path(tmp_path).glob("*.alive")).read_bytes(), type=Sign)
        return sign.phase, sign.at, sign.problem

    assert last() == (Phase.STARTING, 500.0, "")
    clock.now = 501.0
    signs.give()
    clock.now = 502.9
    signs.give()
    assert last() == (Phase.READY, 501.0, "")
    signs.give(problem="x" * 4000)
    assert last() == (Phase.READY, 502.9, "x" * 512)
    clock.now = 504.9
    signs.give(problem="x" * 4000)
    assert last()[1] == 504.9
    signs.close()


def test_only_the_process_that_systemd_watches_reports_to_its_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
        with closing(SignsOfLife(tmp_path, Role.API)) as signs:
            signs.give()
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        with closing(SignsOfLife(tmp_path, Role.WORKER, "cpu")):
            pass
        assert systemd.recv(100) == b"WATCHDOG=1"


def test_the_question_is_light(tmp_path: Path) -> None:
    check = "import sys; from cli.main import app; app(['health'], standalone_mode=False)"
    loaded = "print(sorted({name.split('.')[0] for name in sys.modules}))"
    code = f"import sys\ntry:\n    {check}\nexcept BaseException as error:\n    print(error)\n{loaded}"
    environment = {**os.environ, "MILLRACE_STATE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    sentence, modules = done.stdout.splitlines()
    assert sentence.startswith("Nothing of Millrace runs")
    assert not {"sqlalchemy", "fastapi", "celery", "redis", "pydantic_settings", "httpx2"} & set(
        ast.literal_eval(modules)
    )
