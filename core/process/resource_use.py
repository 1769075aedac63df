"""Memory and CPU time of a process, as Linux reports them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
_USER_TIME, _SYSTEM_TIME, _RESIDENT_PAGES = 11, 12, 21  # in /proc/PID/stat, counted after the name of the program


class OwnProcess(NamedTuple):
    """A process of ours with its kind, such as `api` or `engine`, and the model of an engine."""

    kind: str
    pid: int
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceUse:
    """The memory that a process has now, shared pages included, and the CPU time of all its threads since its start."""

    resident_bytes: int
    cpu_seconds: float


def resource_use(pid: int, proc: Path = _PROC) -> ResourceUse | None:
    """The use of a process of this user; None when it has ended."""
    try:
        text = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name in parentheses may hold anything
    ticks = int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])
    return ResourceUse(
        resident_bytes=int(fields[_RESIDENT_PAGES]) * os.sysconf("SC_PAGE_SIZE"),
        cpu_seconds=ticks / os.sysconf("SC_CLK_TCK"),
    )
