"""Memory of this machine: as much of it as this process may use, and that of each NUMA node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.cgroups import cgroup_folders, read_text
from core.devices.names import parse_cpus

_CACHE: Final = ("inactive_file", "active_file")  # of files, which the kernel drops when memory is needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes in all, and those that can still be taken; None where the system does not report them."""

    total_bytes: int | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A NUMA node: CPUs, and the memory that is near to them."""

    cpus: tuple[int, ...]
    memory: Memory


def host_memory(sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Memory:
    """The machine's memory, or that of the smallest cgroup limit of this process."""
    text = read_text(proc / "meminfo")
    total, free = _kib(text, "MemTotal"), _kib(text, "MemAvailable")
    for limit, used in _limits(sys, proc / "self"):
        total = limit if total is None else min(total, limit)
        free = None if free is None else max(0, min(free, limit - used))
    return Memory(total_bytes=total, free_bytes=free)


def numa_nodes(sys: Path = Path("/sys")) -> dict[int, Node]:
    """The NUMA nodes that have CPUs, by number."""
    nodes = {}
    for folder in sorted((sys / "devices/system/node").glob("node[0-9]*")):
        if cpus := read_text(folder / "cpulist"):
            text = read_text(folder / "meminfo")
            parts = [_kib(text, name) or 0 for name in ("MemFree", "FilePages", "SReclaimable")]
            memory = Memory(total_bytes=_kib(text, "MemTotal"), free_bytes=sum(parts) or None)
            nodes[int(folder.name.removeprefix("node"))] = Node(cpus=parse_cpus(cpus), memory=memory)
    return nodes


def _limits(sys: Path, process: Path) -> Iterator[tuple[int, int]]:
    """The limits of the process's cgroups, each with the bytes that are used and cannot be dropped."""
    for folder, _ in cgroup_folders("memory", sys, process):
        for limit, used, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            if (bytes_allowed := read_text(folder / limit)).isdigit():
                statistics = dict(line.split()[:2] for line in read_text(folder / "memory.stat").splitlines())
                cached = sum(int(statistics.get(f"{prefix}{name}", 0)) for name in _CACHE)
                yield int(bytes_allowed), max(0, int(read_text(folder / used) or 0) - cached)


def _kib(meminfo: str, name: str) -> int | None:
    """A line of a `meminfo` file in bytes."""
    found = re.search(rf"\b{name}:\s+(\d+) kB", meminfo)
    return int(found[1]) * 1024 if found else None
