"""The server of a `command`: started, watched and stopped with its engine."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.process.client import EngineLost
from engine.process.exit_codes import Exit
from engine.types import Finished, Priority
from tests.support.stack import wait_for
from tests.support.upstream import forward
from tests.support.upstream_process import UpstreamProcess

SERVER = (sys.executable, "-m", "tests.support.fault_server", "{port}")
# a server with a child of its own, as those that run a process for each GPU; it prints the ids of both
WITH_CHILD = """
import os, subprocess, sys, threading
from tests.support.fault_server import FaultServer, held
child = subprocess.Popen(["sleep", "600"])
def hold(peer):
    print("RECEIVED", flush=True)
    held(peer)
server = FaultServer([hold], port=int(sys.argv[1]))
print(f"PIDS {os.getpid()} {child.pid}", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("u")


def with_child(folder: Path, **upstream: Any) -> UpstreamProcess:
    engine = UpstreamProcess(folder, command=(sys.executable, "-c", WITH_CHILD, "{port}"), **upstream)
    engine.client.wait_ready(30)
    return engine


def pids(engine: UpstreamProcess) -> list[int]:
    words = engine.log[engine.log.index("PIDS ") :].split()
    return [int(words[1]), int(words[2])]


def is_alive(pid: int) -> bool:
    """A zombie has ended, too; whoever inherited it reaps it at some time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_is_started_on_a_free_port_and_answers(folder: Path) -> None:
    with UpstreamProcess(folder, command=SERVER) as engine:
        assert engine.client.wait_ready(30).build == "faulty/1"
        assert isinstance(engine.ask(), Finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_and_its_children_end_with_the_engine(folder: Path, number: signal.Signals) -> None:
    with with_child(folder) as engine:
        server, child = pids(engine)
        assert is_alive(server)
        assert is_alive(child)
        engine.process.send_signal(number)
        engine.process.wait(20)
        wait_for(lambda: not is_alive(server) and not is_alive(child), "both end", 20)


def test_the_engine_ends_with_its_server_and_the_requests_there_were_running(folder: Path) -> None:
    with with_child(folder, max_concurrency=1) as engine:
        server, child = pids(engine)
        running = engine.submit(forward("running", priority=Priority.BATCH))
        waiting = engine.submit(forward("waiting", priority=Priority.BATCH))
        wait_for(lambda: "RECEIVED" in engine.log, "the request is at the server", 20)
        os.kill(server, signal.SIGKILL)
        assert engine.process.wait(20) == Exit.SERVER_ENDED
        assert running.outcome == EngineLost(request_id="running", was_running=True, was_alone=True)
        assert waiting.outcome == EngineLost(request_id="waiting", was_running=False)
        wait_for(lambda: not is_alive(child), "the child ends", 20)


def test_a_server_that_does_not_answer_ends_the_engine(folder: Path) -> None:
    with with_child(folder, hang_seconds=0.5) as engine:
        os.kill(pids(engine)[0], signal.SIGSTOP)
        assert engine.process.wait(60) == Exit.HUNG


@pytest.mark.parametrize(
    ("command", "given", "reason"),
    [
        (("/nowhere/server",), {}, "`command` cannot be started: No such file or directory: /nowhere/server"),
        (
            (sys.executable, "-c", "print('1%\\r99% of sk-abcdef'); print(); raise SystemExit('no such model')"),
            {"api_key_env": "THEIR_KEY"},
            "The server of `command` ended with exit code 1: 99% of [redacted] | no such model",
        ),
        (
            (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"),
            {},
            "The server of `command` ended with SIGKILL.",
        ),
        (
            (sys.executable, "-c", "print('still loading', flush=True); import time; time.sleep(600)"),
            {"ready_seconds": 1.0},
            "The server of `command` did not answer 200 at /health within 1 s: still loading",
        ),
    ],
)
def test_a_server_that_does_not_start_is_reported_with_its_last_words(
    folder: Path, command: tuple[str, ...], given: dict[str, Any], reason: str
) -> None:
    with UpstreamProcess(folder, command=command, environment={"THEIR_KEY": "sk-abcdef"}, **given) as engine:
        assert engine.process.wait(30) == Exit.MODEL
        assert engine.log.splitlines()[-1] == reason


def test_a_port_that_is_taken_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with UpstreamProcess(folder, command=SERVER, port=port) as engine:
            assert engine.process.wait(30) == Exit.MODEL
            assert engine.log == f"`port` {port} cannot be used: Address already in use.\n"


def test_an_engine_that_is_stopped_while_its_server_loads_ends_both(folder: Path) -> None:
    code = "import os, time; print('PID', os.getpid(), flush=True); time.sleep(600)"
    with UpstreamProcess(folder, command=(sys.executable, "-c", code)) as engine:
        wait_for(lambda: "PID" in engine.log, "it starts", 20)
        server = int(engine.log.split()[1])
        engine.process.terminate()
        assert engine.process.wait(20) == 0
        wait_for(lambda: not is_alive(server), "it ends", 20)
