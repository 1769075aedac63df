"""Prints the nanoseconds that a thread of GNU's OpenMP computes until it sleeps: `python -I -S spin_probe.py`.

It counts time on the processor, so other processes do not disturb it. Imports the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Final

ROUNDS: Final = 100_000  # of spinning, by GOMP_SPINCOUNT in the environment
_TASKS: Final = Path("/proc/self/task")
_PAUSE_SECONDS: Final = 0.002


def main() -> None:
    """Run a team of two threads, and wait until the second one sleeps."""
    runtime, nothing = ctypes.CDLL("libgomp.so.1"), ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
    runtime.GOMP_parallel(nothing, None, 2, 0)
    worker = next(task for task in _TASKS.iterdir() if int(task.name) != os.getpid())
    _wait_until_asleep(worker)
    before = _nanoseconds(worker)
    runtime.GOMP_parallel(nothing, None, 2, 0)
    _wait_until_asleep(worker)
    sys.stdout.write(f"{_nanoseconds(worker) - before}\n")


def _wait_until_asleep(task: Path) -> None:
    while (task / "stat").read_text().rpartition(")")[2].split()[0] != "S":
        time.sleep(_PAUSE_SECONDS)


def _nanoseconds(task: Path) -> int:
    """Time that a thread has computed."""
    return int((task / "schedstat").read_text().split()[0])


if __name__ == "__main__":
    main()
