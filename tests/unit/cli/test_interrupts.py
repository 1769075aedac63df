"""A signal that arrives while a callback of fork runs, where Python drops its exception, is found by the next check."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, signal, sys
from cli.errors import ExitCode
from cli.interrupts import check_interrupt, raise_on_signals

raise_on_signals()
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.{name}))
os.register_at_fork(after_in_parent=lambda: 1 / 0)
if os.fork() == 0:
    os._exit(0)
os.wait()
try:
    check_interrupt()
except KeyboardInterrupt as interrupt:
    sys.exit(ExitCode.of(interrupt))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_during_a_fork_is_not_lost(name: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(name=name)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "in _raise" not in done.stderr, "the interrupt is raised again, so it is not reported as dropped"
    assert "ZeroDivisionError" in done.stderr, "another exception that a callback drops is printed"
