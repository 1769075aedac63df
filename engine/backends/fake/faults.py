"""Faults of the fake: prompts that crash, hang or fail the engine in different ways, for tests of the supervision above it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

import numpy as np


def _crash(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    threading.Event().wait()  # the signal may reach this thread a little later


def _hang() -> None:
    threading.Event().wait()


def _fail() -> None:
    raise RuntimeError("fault requested by the prompt")


def _run_out_of_memory() -> None:
    raise MemoryError


def _allocate_a_gigabyte() -> None:
    """Allocate a gigabyte without touching it: fails only where the address space is limited."""
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
    """Trigger the faults that the prompt names by their markers."""
    if b"<<" in prompt:
        for marker, fault in FAULTS.items():
            if marker in prompt:
                fault()
