"""Selection: the devices that a worker uses, from the names that its user wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.devices.build import build_command
from core.devices.inventory import CPU, Device, Inventory
from core.devices.names import GPU_KINDS, DeviceKind, DeviceName, format_cpus, node_number, parse_cpus, parse_devices
from core.errors import ConfigError


def default_devices(inventory: Inventory) -> tuple[str, ...]:
    """The names of all GPUs that llama.cpp can use, or of the CPU where there is none."""
    return tuple(gpu.name for gpu in inventory.usable_gpus) or (CPU,)


def choose_devices(texts: Sequence[str], inventory: Inventory, *, cpus: Sequence[str] = ()) -> tuple[Device, ...]:
    """The devices with these names; without any, the default ones. A kind such as `cuda` stands for all of its GPUs.

    `cpus` pins the one device, or makes a device on the CPU of each. Devices on the CPU share its memory in equal parts.
    Raises ConfigError, which names the device.
    """
    names = parse_devices(_expanded(texts, inventory) or default_devices(inventory))
    if cpus:
        names = _pinned(names, cpus)
    devices = [_find(name, inventory) for name in names]
    _check_distinct(devices, inventory)
    return _with_shares(devices, names, inventory)


def _expanded(texts: Sequence[str], inventory: Inventory) -> list[str]:
    """The texts with the names of all GPUs in place of a kind."""
    parts: list[str] = []
    for part in ",".join(texts).split(",") if texts else ():
        kind = next((kind for kind in GPU_KINDS if part.strip() == kind), None)
        if kind is None:
            parts.append(part)
            continue
        _check_build(kind, f"device {kind}", inventory)
        found = [gpu.name for gpu in inventory.gpus if gpu.kind is kind]
        if not found:
            raise ConfigError(_absent(f"{kind} device", inventory))
        parts += found
    return [",".join(parts)] if parts else []


def _check_build(kind: DeviceKind, name: str, inventory: Inventory) -> None:
    if kind in GPU_KINDS and kind not in inventory.build.kinds:
        title = "Vulkan" if kind is DeviceKind.VULKAN else kind.upper()
        raise ConfigError(
            f"The {name} cannot be used: llama.cpp was built without {title}. "
            f"Use --device cpu, or build it with {title}: {build_command(kind)}"
        )


def _absent(name: str, inventory: Inventory) -> str:
    known = ", ".join(each.name for each in (*inventory.devices[:1], *inventory.usable_gpus))
    problem = f" The driver reports: {inventory.problem}." if inventory.problem else ""
    return f"There is no {name}: this machine has {known}.{problem}"


def _pinned(names: list[DeviceName], cpus: Sequence[str]) -> list[DeviceName]:
    if len(names) != 1 or names[0].cpus or (len(cpus) > 1 and names[0].kind is not DeviceKind.CPU):
        given = ", ".join(map(str, names))
        raise ConfigError(f"--cpus pins one device, not {given}: write the CPUs after its name, as in cuda:0@0-15.")
    return parse_devices(f"{names[0]}@{each}" for each in cpus)


def _find(name: DeviceName, inventory: Inventory) -> Device:
    _check_build(name.kind, f"device {name.card}", inventory)
    device = inventory.get(name.card)
    if device is None:
        raise ConfigError(_absent(f"device {name.card}", inventory))
    if not name.cpus:
        return device
    pinned = _cpus(name, inventory)
    return replace(device, name=str(name) if name.kind is DeviceKind.CPU else device.name, cpus=pinned)


def _cpus(name: DeviceName, inventory: Inventory) -> tuple[int, ...]:
    """The CPUs after the @, which this process may use."""
    number = node_number(name.cpus)
    if number is None:
        if absent := sorted(set(parse_cpus(name.cpus)) - set(inventory.cpus)):
            allowed = format_cpus(inventory.cpus)
            raise ConfigError(
                f"{name}: there is no CPU {format_cpus(absent)} for this process, which may use {allowed}."
            )
        return parse_cpus(name.cpus)
    node = inventory.nodes.get(number)
    if node is None:
        known = ", ".join(f"node{each} (CPUs {format_cpus(node.cpus)})" for each, node in inventory.nodes.items())
        raise ConfigError(f"{name}: there is no NUMA node {number}: this machine has {known or 'none'}.")
    usable = tuple(cpu for cpu in node.cpus if cpu in inventory.cpus)
    if not usable:
        raise ConfigError(f"{name}: this process may use no CPU of the node, only {format_cpus(inventory.cpus)}.")
    return usable


def _check_distinct(devices: Sequence[Device], inventory: Inventory) -> None:
    for index, device in enumerate(devices):
        for other in devices[:index]:
            if device.name == other.name:
                raise ConfigError(f"The device {device.name} is named twice.")
            if device.kind is other.kind is DeviceKind.CPU:
                shared = set(device.cpus or inventory.cpus) & set(other.cpus or inventory.cpus)
                if shared:
                    common = format_cpus(sorted(shared))
                    raise ConfigError(
                        f"The devices {other.name} and {device.name} share the CPUs {common}: give each its own."
                    )


def _with_shares(devices: Sequence[Device], names: Sequence[DeviceName], inventory: Inventory) -> tuple[Device, ...]:
    """Divide the memory of the machine among the devices on its CPU; a NUMA node gives no more than its own."""
    num_cpu = sum(device.kind is DeviceKind.CPU for device in devices)
    shared = []
    for device, name in zip(devices, names, strict=True):
        if device.kind is DeviceKind.CPU:
            number = node_number(name.cpus)
            total, free = _part(device.total_bytes, num_cpu), _part(device.free_bytes, num_cpu)
            if number is not None:
                node = inventory.nodes[number].memory
                total, free = _least(total, node.total_bytes), _least(free, node.free_bytes)
            device = replace(device, total_bytes=total, free_bytes=free)
        shared.append(device)
    return tuple(shared)


def _part(number: int | None, parts: int) -> int | None:
    return None if number is None else number // parts


def _least(*numbers: int | None) -> int | None:
    return min((number for number in numbers if number is not None), default=None)
