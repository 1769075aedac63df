"""OpenMP in the environment, before llama.cpp is loaded: how long threads spin, and the cores they are bound to.

The threads of a decode meet at barriers, several for each layer, and spin there until the last one comes. Two things make a busy
machine slow a decode by far more than the machine takes:

* GNU's runtime spins for milliseconds. If the last thread waits for its core, it waits for a whole time slice of one that spins.
  A bound well below a time slice of Linux (0.7 ms and more) prevents that. It must be longer than the usual wait at a barrier,
  since it takes time to wake a thread that sleeps.
* Linux may put two threads of a decode on one core, where each spins while the other could run. So they are bound to cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from engine.backends.llama import spin_probe
from engine.config import EngineConfig

_SPIN_NANOSECONDS: Final = 500_000
_UNBOUND_SPIN_NANOSECONDS: Final = (
    50_000  # of threads that may be on one core, where each barrier takes the whole bound
)
_USUAL_NANOSECONDS: Final = 25.0  # of one round of spinning; it takes 2 on some processors and 50 on others
_MOST_ROUNDS: Final = 300_000  # of GNU's runtime without a bound
_BLOCK_MILLISECONDS: Final = "1"  # the shortest that LLVM's runtime takes
_SPIN_VARIABLES: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_PLACE_VARIABLES: Final = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_PROBE_SECONDS: Final = 5.0

Cores = tuple[tuple[int, ...], ...]
"""The logical CPUs of each core."""


def bound_spinning(
    environment: MutableMapping[str, str],
    nanoseconds_per_round: Callable[[], float | None] | None = None,
    *,
    is_bound_to_cores: bool,
) -> None:
    """Set the bound of GNU's and of LLVM's runtime, unless the operator has set any."""
    if any(name in environment for name in _SPIN_VARIABLES):
        return
    limit = _SPIN_NANOSECONDS if is_bound_to_cores else _UNBOUND_SPIN_NANOSECONDS
    rounds = limit / ((nanoseconds_per_round or measure_round)() or _USUAL_NANOSECONDS)
    environment["GOMP_SPINCOUNT"] = str(min(round(rounds), _MOST_ROUNDS))
    environment["KMP_BLOCKTIME"] = _BLOCK_MILLISECONDS


def bind_threads(environment: MutableMapping[str, str], cores: Cores) -> Cores:
    """Bind a thread to each core; return the cores in use: none if there is one alone, or if the operator has set any."""
    if len(cores) < 2 or any(name in environment for name in _PLACE_VARIABLES):
        return ()
    environment["OMP_PLACES"] = ",".join(f"{{{','.join(map(str, cpus))}}}" for cpus in cores)
    environment["OMP_PROC_BIND"] = "close"
    return cores


class BoundThread:
    """Binds the thread that computes to the first core; threads that it starts later inherit that."""

    def __init__(self, cores: Cores) -> None:
        self._first = cores[0] if cores else None

    def bind(self) -> None:
        """Bind the calling thread, once: to do it for each decode would cost a small model a part of its speed."""
        if self._first is not None:
            with suppress(OSError):  # the process runs on other CPUs now, by a cpuset
                os.sched_setaffinity(0, self._first)
            self._first = None


def openmp_warning(config: EngineConfig, system_info: bytes) -> str | None:
    """A line for the log if llama.cpp computes on the CPU without OpenMP: its own threads spin without a bound."""
    if config.gpu_layers or b"OPENMP = 1" in system_info:
        return None
    return "llama.cpp is built without OpenMP, so other programs slow this engine down: build it with GGML_OPENMP=ON\n"


def measure_round() -> float | None:
    """Nanoseconds of one round of spinning in GNU's runtime, measured in a process of its own; None without that runtime."""
    command = [sys.executable, "-I", "-S", str(Path(spin_probe.__file__))]
    environment = {"GOMP_SPINCOUNT": str(spin_probe.ROUNDS)}
    try:
        probe = subprocess.run(command, env=environment, capture_output=True, timeout=_PROBE_SECONDS, check=True)
        nanoseconds = float(probe.stdout) / spin_probe.ROUNDS
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return nanoseconds if nanoseconds > 0 else None
