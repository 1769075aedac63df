"""Budget: the memory for the models of a device, by the setting `device_memory`."""

from __future__ import annotations

from typing import Final

from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.memory_sizes import parse_device_memory
from core.settings import Settings

UNLIMITED: Final = 1 << 62  # where the system does not report the memory of the device
_CPU_SHARE: Final = 0.8
_GPU_SHARE: Final = 0.9


def device_budget(settings: Settings, device: Device) -> int:
    """Return the bytes that the models of a device may have together; by default, a share of what there is."""
    budgets = parse_device_memory(settings.device_memory)
    budget = next((budgets[name] for name in (device.name, device.kind, "") if name in budgets), None)
    if budget is not None:
        return budget
    is_cpu = device.kind is DeviceKind.CPU
    known = device.total_bytes if is_cpu else device.free_bytes
    return UNLIMITED if known is None else int(known * (_CPU_SHARE if is_cpu else _GPU_SHARE))
