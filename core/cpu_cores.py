"""CPU cores that this process may use: its affinity, hyper-threads counted once, and the CPU quota of its cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from core.cgroups import cgroup_folders, read_text

_QUOTA_V2: Final = "cpu.max"
_QUOTA_V1: Final = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """`cpus` are the usable logical CPUs of each core. `quota` is in CPUs, that of the cgroup `group`; None without one."""

    cpus: tuple[tuple[int, ...], ...]
    quota: float | None = None
    group: str = ""

    @property
    def threads(self) -> int:
        """The threads that compute best: one per core, no more than the quota pays for, rounded to the nearest."""
        return len(self.cpus) if self.quota is None else max(1, min(len(self.cpus), int(self.quota + 0.5)))

    def part(self, part: float) -> Cores:
        """The same cores with a part of the quota: others use the rest."""
        return self if self.quota is None else replace(self, quota=self.quota * part)

    @property
    def reason(self) -> str:
        """The number of threads, and its reason, in one line."""
        quota = "" if self.quota is None else f", with a quota of {self.quota:g} CPUs"
        number = sum(map(len, self.cpus))
        return f"{self.threads} per model: this process may use {number} CPUs on {len(self.cpus)} cores{quota}"


def usable_cores(
    cpus: frozenset[int] | None = None, sys: Path = Path("/sys"), proc: Path = Path("/proc/self")
) -> Cores:
    """Count the cores of this process."""
    cores: dict[str, list[int]] = {}
    for cpu in sorted(os.sched_getaffinity(0) if cpus is None else cpus):
        cores.setdefault(_siblings(sys, cpu), []).append(cpu)
    quota, group = min(_quotas(sys, proc), default=(None, ""))
    return Cores(cpus=tuple(map(tuple, cores.values())), quota=quota, group=group)


def _siblings(sys: Path, cpu: int) -> str:
    """The list of logical CPUs in the core of this one, in the kernel's words; without it a core has one CPU."""
    return read_text(sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _quotas(sys: Path, proc: Path) -> Iterator[tuple[float, str]]:
    """The quotas of the process's cgroups and of all above them, in CPUs."""
    for folder, group in cgroup_folders("cpu", sys, proc):
        if (quota := _quota(folder)) is not None:
            yield quota, group


def _quota(group: Path) -> float | None:
    """The quota of one cgroup in CPUs; None where it has none."""
    with suppress(ValueError):
        if limit := read_text(group / _QUOTA_V2):
            used, period = limit.split()
        else:
            used, period = (read_text(group / name) for name in _QUOTA_V1)
        if int(used) > 0 and int(period) > 0:
            return int(used) / int(period)
    return None
