"""A stack at rest: `millrace serve` with the demo model in an empty folder, when nothing is asked of it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from bench.models import DEMO

_SETTLE_SECONDS: Final = 10.0
_MEASURING_SECONDS: Final = 60.0
_READY: Final = re.compile(r"ready after ([\d.]+) s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """Seconds until it was ready, at its first start and at the second; the numbers of its processes, with MiB (PSS) of each."""

    first_seconds: float
    second_seconds: float
    mib_by_process: list[tuple[str, float]]
    percent_of_core: float


def at_rest(folder: Path, *, seconds: float = 30) -> Rest:
    """Start the stack twice; measure the second one, idle for `seconds`."""
    with _served(folder) as (_, first_seconds):
        pass
    with _served(folder) as (root, second_seconds):
        _wait_until_measured(folder / "state" / "tunings")
        time.sleep(_SETTLE_SECONDS)
        before = {process: _cpu_seconds(process) for process in [root, *root.children(recursive=True)]}
        time.sleep(seconds)
        family = [process for process in before if process.is_running()]  # without workers of Postgres that come and go
        used = sum(_cpu_seconds(process) - before[process] for process in family)
        sizes = [(" ".join(process.cmdline())[:100], _pss_mib(process)) for process in family]
    return Rest(
        first_seconds=first_seconds,
        second_seconds=second_seconds,
        mib_by_process=sizes,
        percent_of_core=100 * used / seconds,
    )


def _wait_until_measured(tunings: Path) -> None:
    """Wait for the engine's own measurement, which is made once; where others disturb it, it is not."""
    deadline = time.monotonic() + _MEASURING_SECONDS
    while not any(tunings.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.5)


@contextmanager
def _served(folder: Path) -> Iterator[tuple[psutil.Process, float]]:
    command = [str(Path(sys.executable).with_name("millrace")), "serve", "--port", "0", "--device", "cpu"]
    command += ["--state-dir", str(folder / "state"), "--models-dir", str(DEMO.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = next(match for line in process.stdout if (match := _READY.search(line)))
            yield psutil.Process(process.pid), float(found[1])
        finally:
            process.send_signal(signal.SIGTERM)


def _cpu_seconds(process: psutil.Process) -> float:
    """Seconds of processor time of all threads, to the nanosecond."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _pss_mib(process: psutil.Process) -> float:
    (pss,) = re.findall(r"^Pss: +(\d+) kB", Path(f"/proc/{process.pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(pss) / 1024
