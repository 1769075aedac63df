"""Inventory: the devices of this machine as they are now, with their memory, driver and the build of llama.cpp.

Tests replace it: the environment variable MILLRACE_TEST_DEVICES names a JSON file with `cpus`, `memory`, `nodes`, `gpus`,
`driver`, `cuda` and `build`. No other use of the variable is supported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from core.cgroups import read_text
from core.devices.build import Build, installed_build
from core.devices.host_memory import Memory, Node, host_memory, numa_nodes
from core.devices.names import DeviceKind, node_number, parse_cpus, parse_device
from core.devices.nvidia import Nvidia, card_memory, card_utilization, read_nvidia

CPU: Final = "cpu"
TEST_VARIABLE: Final = "MILLRACE_TEST_DEVICES"
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_PROBE_SECONDS: Final = 120.0
_CPU_BUILD: Final = Build()
_PREFIXES: Final = {"CUDA": DeviceKind.CUDA, "ROCm": DeviceKind.HIP, "Vulkan": DeviceKind.VULKAN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device. `card` is the name of the hardware; a memory is None where the system does not report it.

    `id` selects a GPU in CUDA_VISIBLE_DEVICES and the like. `cpus` are the CPUs that its processes are pinned to; None: all.
    """

    name: str
    kind: DeviceKind
    card: str = ""
    id: str = ""
    total_bytes: int | None = None
    free_bytes: int | None = None
    cpus: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The devices of this machine: the CPU, then the GPUs that this process may see.

    `cpus` are those of this process, `nodes` the NUMA nodes. `cuda` is the newest version that the driver runs; `problem` is
    the driver's own message if it does not work.
    """

    devices: tuple[Device, ...]
    cpus: tuple[int, ...]
    nodes: Mapping[int, Node] = field(default_factory=dict)
    build: Build = _CPU_BUILD
    driver: str = ""
    cuda: str = ""
    problem: str = ""

    def get(self, name: str) -> Device | None:
        """The device with this name; of the CPU, `cpu`."""
        return next((device for device in self.devices if device.name == name), None)

    @property
    def gpus(self) -> tuple[Device, ...]:
        """All GPUs, also those that llama.cpp was not built for."""
        return tuple(device for device in self.devices if device.kind is not DeviceKind.CPU)

    @property
    def usable_gpus(self) -> tuple[Device, ...]:
        """The GPUs of the first kind that llama.cpp was built for and this machine has."""
        kinds = (kind for kind in self.build.kinds if any(gpu.kind is kind for gpu in self.gpus))
        first = next(kinds, None)
        return tuple(gpu for gpu in self.gpus if gpu.kind is first)


def read_inventory(environment: Mapping[str, str] = os.environ) -> Inventory:
    """Read the devices of this machine, and their memory as it is now."""
    if file := environment.get(TEST_VARIABLE):
        return _fake(Path(file))
    build, nvidia = installed_build(), read_nvidia()
    gpus = list(_visible(nvidia, environment.get(_VISIBLE)))
    others = [kind for kind in build.kinds if kind is not DeviceKind.CUDA or not nvidia.cards]
    if others:
        gpus += [gpu for gpu in _probed() if gpu.kind in others]
    memory = host_memory()
    cpu = Device(
        name=CPU,
        kind=DeviceKind.CPU,
        card=_processor(),
        total_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
    )
    return Inventory(
        devices=(cpu, *gpus),
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        nodes=numa_nodes(),
        build=build,
        driver=nvidia.driver,
        cuda=nvidia.cuda,
        problem=nvidia.problem,
    )


def read_memory(device: Device, environment: Mapping[str, str] = os.environ) -> Memory:
    """The memory of a device as it is now: no more is free than it has in all. Of a GPU that nothing reports, as it was."""
    now = Memory(total_bytes=device.total_bytes, free_bytes=device.free_bytes)
    if file := environment.get(TEST_VARIABLE):
        found = _fake(Path(file)).get(parse_device(device.name).card)
        now = now if found is None else Memory(total_bytes=found.total_bytes, free_bytes=found.free_bytes)
    elif device.kind is DeviceKind.CPU:
        number = node_number(parse_device(device.name).cpus)
        now = host_memory() if number is None else numa_nodes()[number].memory
    elif device.kind is DeviceKind.CUDA:
        now = card_memory(device.id) or now
    if device.total_bytes is None or now.free_bytes is None:
        return now
    return Memory(total_bytes=device.total_bytes, free_bytes=min(now.free_bytes, device.total_bytes))


def read_utilization(device: Device, environment: Mapping[str, str] = os.environ) -> float | None:
    """The part of the last moment in which a GPU computed, from 0 to 1; None where nothing reports it, as for the CPU."""
    if file := environment.get(TEST_VARIABLE):
        gpus = json.loads(Path(file).read_text()).get("gpus", [])
        return next((gpu.get("utilization") for gpu in gpus if gpu["name"] == device.name), None)
    return card_utilization(device.id) if device.kind is DeviceKind.CUDA else None


def _visible(nvidia: Nvidia, chosen: str | None) -> list[Device]:
    """The cards in CUDA_VISIBLE_DEVICES, in its order and up to the first that there is not, as CUDA reads it."""
    cards = list(nvidia.cards)
    if chosen is not None:
        cards = []
        for entry in (part.strip() for part in chosen.split(",")):
            found = [
                card
                for number, card in enumerate(nvidia.cards)
                if entry == str(number) or (not entry.isdigit() and entry and card.id.startswith(entry))
            ]
            if not found:
                break
            cards.append(found[0])
    return [
        Device(
            name=f"cuda:{number}",
            kind=DeviceKind.CUDA,
            card=card.name,
            id=card.id,
            total_bytes=card.memory.total_bytes,
            free_bytes=card.memory.free_bytes,
        )
        for number, card in enumerate(cards)
    ]


def _probed() -> list[Device]:
    """The GPUs that llama.cpp itself finds, in a process of its own."""
    command = [sys.executable, "-P", "-m", "engine.process.list_gpus"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=True)
        return [device for gpu in json.loads(done.stdout) if (device := _probed_device(gpu)) is not None]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _probed_device(gpu: Mapping[str, Any]) -> Device | None:  # Any: JSON of our own program
    prefix = gpu["name"].rstrip("0123456789")
    if prefix not in _PREFIXES:
        return None
    kind, number = _PREFIXES[prefix], gpu["name"].removeprefix(prefix)
    return Device(
        name=f"{kind}:{number}",
        kind=kind,
        card=gpu["card"],
        id=number,
        total_bytes=gpu["total_bytes"] or None,
        free_bytes=gpu["free_bytes"] or None,
    )


def _processor() -> str:
    """The name of the processor; empty where the system does not have it."""
    lines = (line.partition(":") for line in read_text(Path("/proc/cpuinfo")).splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == "model name"), "")


def _fake(file: Path) -> Inventory:
    """The inventory of a test."""
    content = json.loads(file.read_text())
    cpus = parse_cpus(content["cpus"]) if "cpus" in content else tuple(sorted(os.sched_getaffinity(0)))
    memory = _fake_memory(content.get("memory", {}))
    cpu = Device(
        name=CPU, kind=DeviceKind.CPU, card="Test CPU", total_bytes=memory.total_bytes, free_bytes=memory.free_bytes
    )
    gpus = [
        Device(
            name=gpu["name"],
            kind=parse_device(gpu["name"]).kind,
            card=gpu.get("card", "Test card"),
            id=gpu.get("id", gpu["name"].rpartition(":")[2]),
            total_bytes=gpu.get("total_bytes"),
            free_bytes=gpu.get("free_bytes"),
        )
        for gpu in content.get("gpus", [])
    ]
    nodes = {
        int(number): Node(cpus=parse_cpus(node["cpus"]), memory=_fake_memory(node))
        for number, node in content.get("nodes", {}).items()
    }
    build = content.get("build", {})
    return Inventory(
        devices=(cpu, *gpus),
        cpus=cpus,
        nodes=nodes,
        build=Build(kinds=tuple(DeviceKind(kind) for kind in build.get("kinds", ())), cuda=build.get("cuda", "")),
        driver=content.get("driver", ""),
        cuda=content.get("cuda", ""),
        problem=content.get("problem", ""),
    )


def _fake_memory(content: Mapping[str, Any]) -> Memory:  # Any: JSON
    return Memory(total_bytes=content.get("total_bytes"), free_bytes=content.get("free_bytes"))
