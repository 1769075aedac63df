"""Prompts that bring the fake down, each in its own way: for what stands above an engine and must outlive it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

import numpy as np


def _crash(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    threading.Event().wait()  # it has come to this process, if not yet to this thread


def _hang() -> None:
    threading.Event().wait()


def _fail() -> None:
    raise RuntimeError("the prompt asked for it")


def _run_out_of_memory() -> None:
    raise MemoryError


def _allocate_a_gigabyte() -> None:
    """A gigabyte, of which nothing is touched: there is none only where the process may not have it."""
    np.empty(1 << 30, np.uint8)


FAULTS: Final[dict[bytes, Callable[[], None]]] = {
    b"<<segfault>>": lambda: _crash(signal.SIGSEGV),
    b"<<abort>>": lambda: _crash(signal.SIGABRT),
    b"<<hang>>": _hang,
    b"<<raise>>": _fail,
    b"<<memory>>": _run_out_of_memory,
    b"<<much>>": _allocate_a_gigabyte,
}


def trigger_fault(prompt: bytes) -> None:
    """Do what a prompt asks for, if it asks for one of these."""
    if b"<<" in prompt:
        for marker, fault in FAULTS.items():
            if marker in prompt:
                fault()
