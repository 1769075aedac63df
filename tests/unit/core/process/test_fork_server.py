"""Programs that a fork server starts behave as if they were started by exec."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core.process.clone import is_supported

pytestmark = pytest.mark.skipif(not is_supported(), reason="needs Linux")

PROGRAM = """
import json, os, random, signal, sys, time
PREPARED = os.getpid()
from core.process.child_process import notify_ready

def main():
    if sys.argv[1] == "fails":
        raise RuntimeError("no disk left")
    if sys.argv[1] == "exits":
        sys.exit(7)
    files = sorted(os.listdir("/proc/self/fd"), key=int)[:-1]
    handlers = [signal.getsignal(number) in (signal.SIG_DFL, 0) for number in (signal.SIGTERM, signal.SIGHUP)]
    facts = {"files": files, "variables": [os.environ.get("GIVEN"), os.environ.get("HIDDEN")], "defaults": handlers,
             "cpus": sorted(os.sched_getaffinity(0)), "module": PREPARED,
             "random": random.random(), "arguments": sys.argv[1:], "session": os.getsid(0) == os.getpid()}
    print(json.dumps(facts), flush=True)
    notify_ready("hello")
    time.sleep(60)
"""

OWNER = """
import os, signal, sys
from pathlib import Path
from core.logs import configure_logging
from core.process.child_process import Child, ChildFailed
from core.process.fork_server import ForkServer

configure_logging()
os.environ["HIDDEN"] = "secret"
signal.signal(signal.SIGTERM, lambda *_: None)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, which a clone inherits
kept = open("/dev/null")
server = ForkServer("program")
server.start()

def start(word):
    command = [sys.executable, "-P", "-m", "program", word]
    environment = {key: value for key, value in os.environ.items() if key != "HIDDEN"}
    return Child(word, command, Path(word + ".log"), env={**environment, "GIVEN": "yes"}, fork_server=server)

for line in sys.stdin:
    word = line.strip()
    if word == "pin":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(max(os.sched_getaffinity(0)), flush=True)
        continue
    if word == "server":
        print(server.pid, flush=True)
        continue
    child = start(word)
    try:
        child.wait_ready(30)
        print(child.pid, flush=True)
    except ChildFailed as error:
        print(str(error).replace("\\n", " "), flush=True)
"""


class Owner:
    """A process with a fork server, in a folder with the program."""

    def __init__(self, folder: Path) -> None:
        (folder / "program.py").write_text(PROGRAM)
        self.folder = folder
        path = os.pathsep.join([str(folder), str(Path.cwd())])
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, word: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def start(self, word: str) -> psutil.Process:
        return psutil.Process(int(self.ask(word)))

    def facts(self, word: str) -> dict[str, object]:
        facts: dict[str, object] = json.loads((self.folder / f"{word}.log").read_text())
        return facts


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner(tmp_path)
    yield owner
    owner.process.kill()
    owner.process.communicate()


def test_a_clone_looks_like_a_program_that_was_started_by_exec(owner: Owner) -> None:
    first, second = owner.start("one"), owner.start("two")
    assert first.ppid() == second.ppid() == owner.process.pid
    assert first.cmdline()[1:] == ["-P", "-m", "program", "one"]
    facts, others = owner.facts("one"), owner.facts("two")
    assert facts.pop("random") != others.pop("random"), "each has random numbers of its own"
    assert facts.pop("module") == others.pop("module") == owner.process.pid, "the owner has imported it"
    assert facts.pop("cpus") == sorted(os.sched_getaffinity(0))
    assert facts == {
        "files": ["0", "1", "2"],
        "variables": ["yes", None],
        "defaults": [True, True],
        "arguments": ["one"],
        "session": True,
    }


def test_a_clone_runs_on_the_cpus_of_its_owner(owner: Owner) -> None:
    owner.start("one")
    cpu = int(owner.ask("pin"))
    owner.start("two")
    assert owner.facts("two")["cpus"] == [cpu]


def test_a_clone_that_does_not_start_is_reported_with_its_last_words(owner: Owner) -> None:
    report = owner.ask("fails")
    assert "exit code 1" in report
    assert "no disk left" in report
    assert "exit code 7" in owner.ask("exits")


def test_programs_outlive_their_fork_server_and_the_next_one_has_a_new_server(owner: Owner) -> None:
    first = owner.start("one")
    server = psutil.Process(int(owner.ask("server")))
    server.send_signal(signal.SIGKILL)
    second = owner.start("two")
    assert first.is_running()
    assert first.status() != psutil.STATUS_ZOMBIE
    assert second.ppid() == owner.process.pid
    assert int(owner.ask("server")) != server.pid
    assert not server.is_running(), "the owner has reaped it"


def test_the_server_and_its_programs_end_with_an_owner_that_is_killed(owner: Owner) -> None:
    family = [owner.start("one"), psutil.Process(int(owner.ask("server")))]
    owner.process.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
