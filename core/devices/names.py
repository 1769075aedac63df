"""Names of devices: `cpu`, `cuda:0`, and either with the CPUs of its processes, as in `cpu@0-15` and `cuda:0@node1`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from core.errors import ConfigError

_NAME: Final = re.compile(
    r"(?:(?P<cpu>cpu)|(?P<kind>cuda|hip|vulkan):(?P<number>\d{1,3}))(?:@(?P<cpus>.*))?", re.ASCII | re.DOTALL
)
_RANGE: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_NODE: Final = re.compile(r"node(\d{1,4})", re.ASCII)
_USAGE: Final = "use cpu, cuda:0, cuda:1, …, or some of the CPUs, as in cpu@0-15 or cpu@node0"


class DeviceKind(StrEnum):
    """The kind of a device: the CPU, or a GPU by the interface through which llama.cpp uses it."""

    CPU = "cpu"
    CUDA = "cuda"
    HIP = "hip"
    VULKAN = "vulkan"


GPU_KINDS: Final = (DeviceKind.CUDA, DeviceKind.HIP, DeviceKind.VULKAN)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceName:
    """The parts of a name. `cpus` is the text after the @, a list of CPUs or `nodeN`; empty for all CPUs."""

    kind: DeviceKind
    number: int | None = None
    cpus: str = ""

    @property
    def card(self) -> str:
        """The name without CPUs."""
        return self.kind if self.number is None else f"{self.kind}:{self.number}"

    def __str__(self) -> str:
        return f"{self.card}@{self.cpus}" if self.cpus else self.card


def parse_device(text: str) -> DeviceName:
    """Parse one name. Raises ConfigError."""
    match = _NAME.fullmatch(text)
    if match is None or match["cpus"] == "":
        raise ConfigError(f"Unknown device {text!r}: {_USAGE}.")
    cpus = match["cpus"] or ""
    if cpus and node_number(cpus) is None:
        cpus = format_cpus(parse_cpus(cpus))
    if match["cpu"]:
        return DeviceName(kind=DeviceKind.CPU, cpus=cpus)
    return DeviceName(kind=DeviceKind(match["kind"]), number=int(match["number"]), cpus=cpus)


def parse_devices(texts: Iterable[str]) -> list[DeviceName]:
    """Parse names, of which a text may have several, separated by commas. Raises ConfigError.

    No name begins with a digit, so in `cpu@0-3,8-11,cuda:0` the second part belongs to the first.
    """
    names: list[str] = []
    for text in texts:
        for index, part in enumerate(part.strip() for part in text.split(",")):
            if index and part[:1].isdigit():
                names[-1] += f",{part}"
            else:
                names.append(part)
    return [parse_device(name) for name in names]


def node_number(cpus: str) -> int | None:
    """The number of the NUMA node in `nodeN`; None for a list of CPUs."""
    match = _NODE.fullmatch(cpus)
    return int(match[1]) if match else None


def parse_cpus(text: str) -> tuple[int, ...]:
    """Parse a list of CPUs such as `0-3,8`, in the kernel's form. Raises ConfigError."""
    cpus: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ConfigError(f"{text!r} is not a list of CPUs: write 0-15, or 0-7,16-23, or node0 for a NUMA node.")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def format_cpus(cpus: Sequence[int]) -> str:
    """The kernel's form of sorted CPUs: ranges, separated by commas."""
    ranges: list[list[int]] = []
    for cpu in cpus:
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
