"""SIGHUP asks a process to read its files again, and ends one whose terminal has closed."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from core.process.hangup import on_hangup


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_each_hangup_calls_the_action() -> None:
    calls: list[int] = []
    on_hangup(lambda: calls.append(1))
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGHUP)
    assert calls == [1, 1]


def test_a_process_ends_when_its_terminal_closes() -> None:
    program = (
        "import signal; from core.process.hangup import on_hangup; on_hangup(lambda: print('again', flush=True)); "
    )
    program += "print('ready', flush=True)\nwhile True: signal.pause()"
    ours, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=terminal, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        os.close(terminal)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "again\n", "the terminal is there"
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(10) == -signal.SIGHUP
