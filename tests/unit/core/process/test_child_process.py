from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from core.errors import ConfigError
from core.process.child_process import Child, ChildFailed
from core.process.runtime_dirs import private_directory, socket_directory
from core.process.supervisor import SupervisedProcess

READY = "from core.process.child_process import notify_ready; import time; notify_ready('hello'); time.sleep(60)"


def test_a_child_says_when_it_is_ready(tmp_path: Path) -> None:
    child = Child("one", [sys.executable, "-c", READY], tmp_path / "log")
    try:
        assert child.wait_ready(20) == "hello"
        assert child.exit_code() is None
    finally:
        child.stop(signal.SIGTERM, 5)
    assert child.exit_code() == -signal.SIGTERM


def test_a_child_that_ends_instead_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = Child("one", [sys.executable, "-c", "import sys; sys.exit('no disk left')"], tmp_path / "log")
    with pytest.raises(ChildFailed, match=r"(?s)one ended with exit code 1.*no disk left"):
        child.wait_ready(20)
    child.stop(signal.SIGTERM, 1)


def test_a_child_that_ignores_the_request_is_ended_with_its_group(tmp_path: Path) -> None:
    script = (
        "import signal, subprocess, sys, time; signal.signal(15, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=False);"
        "from core.process.child_process import notify_ready; notify_ready(); time.sleep(60)"
    )
    child = Child("one", [sys.executable, "-c", script], tmp_path / "log")
    child.wait_ready(20)
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    child.stop(signal.SIGTERM, 0.2)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert len(family) == 2
    assert not alive


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from core.process.child_process import Child
child = Child("grandchild", [sys.executable, "-c", {READY!r}], Path({str(tmp_path / "log")!r}))
child.wait_ready(20)
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        grandchild = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    _, alive = psutil.wait_procs([grandchild], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_each_quick_exit_doubles_the_pause_before_the_next_start(tmp_path: Path) -> None:
    supervised = SupervisedProcess("one", [sys.executable, "-c", ""], tmp_path / "log", {}, 0.5)
    pauses = []
    for _ in range(8):
        child = supervised.start()
        assert child.wait(20)
        now = supervised.started_at + 1
        supervised.restart_if_exited(now)
        pauses.append(supervised.restart_at - now)
    assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30])  # differences of two times
    supervised.restart_if_exited(now)
    assert supervised.child is None, "not before its pause is over"


def test_sockets_of_a_long_state_directory_lie_in_a_short_one(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    short = socket_directory(long)
    assert len(str(short)) < 70
    assert short == socket_directory(long)
    assert short.stat().st_mode & 0o777 == 0o700
    short.rmdir()


def test_a_directory_of_another_user_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="not a directory of this user"):
        private_directory(tmp_path / "link")


def test_explained_exits_do_not_count_and_a_degraded_process_waits_longest(tmp_path: Path) -> None:
    codes: list[int] = []
    supervised = SupervisedProcess(
        "one", [sys.executable, "-c", "exit(7)"], tmp_path / "log", {}, 0.5, tolerated_exits=3, on_exit=codes.append
    )
    pauses = []
    for _ in range(5):
        assert supervised.start().wait(20)
        now = supervised.started_at + 1
        supervised.restart_if_exited(now)
        pauses.append(supervised.restart_at - now)
    assert pauses == [0.5, 0.5, 0.5, 1, 2]
    assert codes == [7] * 5
    supervised.set_crash_count(1, is_degraded=False)
    assert supervised.restart_at == now + 0.5
    supervised.set_crash_count(7, is_degraded=True)
    assert supervised.restart_at == now + 30
