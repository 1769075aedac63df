"""Waits of a main thread that signals end. A wait that none ends would time out the test."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from core.process.signal_wakeup import woken_by_signals

LONG_SECONDS = 60.0


def test_the_end_of_a_child_ends_a_wait_and_the_next_one_waits_again() -> None:
    with woken_by_signals() as wait:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            began = time.monotonic()
            wait(0.01)
            assert child.poll() is None
            assert child.stdin is not None
            child.stdin.close()
            wait(LONG_SECONDS)
        assert time.monotonic() - began < LONG_SECONDS
        began = time.monotonic()
        wait(0.05)
        assert time.monotonic() - began >= 0.05, "the signal counts once"


def test_a_signal_that_came_before_a_wait_ends_it() -> None:
    seen: list[int] = []
    last = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with woken_by_signals() as wait:
            signal.raise_signal(signal.SIGUSR1)
            began = time.monotonic()
            wait(LONG_SECONDS)
            assert time.monotonic() - began < LONG_SECONDS
    finally:
        signal.signal(signal.SIGUSR1, last)
    assert seen == [signal.SIGUSR1]


def test_what_was_set_before_is_set_again() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    with woken_by_signals():
        assert signal.getsignal(signal.SIGCHLD) is not before
    assert signal.getsignal(signal.SIGCHLD) is before
    assert signal.set_wakeup_fd(-1) == -1
