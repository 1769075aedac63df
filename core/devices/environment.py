"""Environment variables that limit a process to its devices, set before the libraries of a GPU load."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from core.devices.inventory import Device
from core.devices.names import DeviceKind

_CUDA: Final = "CUDA_VISIBLE_DEVICES"
_HIP: Final = "HIP_VISIBLE_DEVICES"


def device_environment(devices: Sequence[Device], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that hide all GPUs but these, in this order; on the CPU, all of them.

    HIP reads CUDA's variable too. Vulkan has none by the number that llama.cpp gives a card: the engine selects it by name.
    """
    kind = devices[0].kind
    ids = [device.id for device in devices]
    if kind is DeviceKind.CUDA:  # the order matters to a number, which stands for an unknown UUID
        return {_CUDA: ",".join(ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if kind is DeviceKind.HIP:
        seen = environment.get(_HIP, "").split(",")  # the numbers count within these
        return {_HIP: ",".join(seen[int(each)] if int(each) < len(seen) and seen[0] else each for each in ids)}
    if kind is DeviceKind.VULKAN:
        return {}
    return {_CUDA: "", _HIP: "-1", "GGML_VK_VISIBLE_DEVICES": ""}
