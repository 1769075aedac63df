"""Prompts that bring the fake down, each in its own way: for what stands above an engine and must outlive it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Final


def _crash(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    threading.Event().wait()  # it has come to this process, if not yet to this thread


def _hang() -> None:
    threading.Event().wait()


def _fail() -> None:
    raise RuntimeError("the prompt asked for it")


def _run_out_of_memory() -> None:
    raise MemoryError


FAULTS: Final[dict[bytes, Callable[[], None]]] = {
    b"<<segfault>>": lambda: _crash(signal.SIGSEGV),
    b"<<abort>>": lambda: _crash(signal.SIGABRT),
    b"<<hang>>": _hang,
    b"<<raise>>": _fail,
    b"<<memory>>": _run_out_of_memory,
}


def obey(prompt: bytes) -> None:
    """Do what a prompt asks for, if it asks for one of these."""
    if b"<<" in prompt:
        for words, fault in FAULTS.items():
            if words in prompt:
                fault()
