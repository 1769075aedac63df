"""`millrace health` on a stack that runs."""

from __future__ import annotations

import os
import signal

from tests.support.command import millrace
from tests.support.stack import StackProcess, wait_for


def test_the_processes_of_a_stack_answer_for_themselves(server: StackProcess) -> None:
    def ask(*words: str) -> tuple[int, str]:
        done = millrace("health", *words, cwd=server.state_dir, MILLRACE_STATE_DIR=str(server.state_dir))
        return done.returncode, done.stdout + done.stderr

    code, text = ask()
    assert (code, text.count("process ")) == (0, 3), text
    assert "the api (process" in text
    assert "the clerk (process" in text
    assert "the worker of cpu (process" in text
    assert ask("worker", "--device", "cpu")[0] == 0
    assert ask("worker", "--device", "cuda:7") == (
        1,
        f"millrace: No worker of cuda:7 runs on this host with the state directory {server.state_dir}.\n",
    )
    code, text = ask("api")
    assert code == 0
    pid = int(text.partition("process ")[2].partition(")")[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        code, text = ask("api")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert code == 1
    assert f"millrace: The api (process {pid}) does not answer at http://" in text
    wait_for(lambda: ask("api")[0] == 0, "the api answers again")
