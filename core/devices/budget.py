"""Budget: the memory for the models of a device, by the setting `device_memory`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from core.devices.inventory import Device, Inventory
from core.devices.names import DeviceKind, parse_device
from core.errors import ConfigError
from core.memory_sizes import parse_device_memory
from core.settings import Settings

UNLIMITED: Final = 1 << 62  # where the system does not report the memory of the device
_CPU_SHARE: Final = 0.8
_GPU_SHARE: Final = 0.9


def device_budget(settings: Settings, device: Device) -> int:
    """Return the bytes that the models of a device may have together; by default, a share of what there is."""
    budgets = {_key(name): budget for name, budget in parse_device_memory(settings.device_memory).items()}
    budget = next((budgets[name] for name in (device.name, device.kind, "") if name in budgets), None)
    if budget is not None:
        return budget
    is_cpu = device.kind is DeviceKind.CPU
    known = device.total_bytes if is_cpu else device.free_bytes
    return UNLIMITED if known is None else int(known * (_CPU_SHARE if is_cpu else _GPU_SHARE))


def check_device_memory(settings: Settings, devices: Sequence[Device], inventory: Inventory) -> None:
    """Raise ConfigError for a size of a device that is none of a worker's `devices`, and none of this machine's."""
    names = Counter(_key(name) for name in parse_device_memory(settings.device_memory))
    there = dict.fromkeys(device.name for device in (*inventory.devices, *devices))
    kinds = {device.kind for device in inventory.devices}
    for name, number in names.items():
        if name and name not in there and name not in kinds:
            raise ConfigError(f"device_memory: there is no device {name}. There are: {', '.join(there)}.")
        if number > 1:
            raise ConfigError(f"device_memory has two sizes for {name}: remove one.")


def _key(name: str) -> str:
    """A name in the form that devices have: of a GPU without CPUs. A kind stays as it is, and so does that of all others."""
    if not name or name in list(DeviceKind):
        return name
    try:
        device = parse_device(name)
    except ConfigError as error:
        raise ConfigError(f"device_memory: {error}") from None
    return str(device) if device.kind is DeviceKind.CPU else device.card
