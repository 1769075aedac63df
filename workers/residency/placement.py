"""Placement: which models the launcher of a device may load, on which devices, and the part of each device.

A model without `devices` may be on any device of the worker. One that is divided among several belongs to the launcher of the
first, and takes its part of the memory of the others for good. `deployment` has all devices of the worker. `replicas` is not
counted here: that takes the rows of all launchers.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.models.model_files import ModelConfig


def owns(model: ModelConfig, device: Device, deployment: Sequence[Device]) -> bool:
    """May the launcher of this device load this model?"""
    return not model.devices or (_matches(model.devices[0], device) and not missing_devices(model, deployment))


def engine_devices(model: ModelConfig, device: Device, deployment: Sequence[Device]) -> tuple[Device, ...]:
    """The devices of the engine that this device's launcher starts for a model that it owns: this one first."""
    return (device, *(each for name in model.devices[1:] for each in deployment if each.name == name))


def missing_devices(model: ModelConfig, deployment: Sequence[Device]) -> tuple[str, ...]:
    """The devices of a model that this worker lacks. If these are all of them, it may be a model of another worker."""
    return tuple(name for name in model.devices if not any(_matches(name, device) for device in deployment))


def parts(model: ModelConfig, devices: Sequence[Device]) -> tuple[float, ...]:
    """The part of the model's memory on each device of its engine; they add up to 1.

    Without `tensor_split` they follow the memory of the devices, so that all launchers, and llama.cpp, count with the same.
    """
    memory = [device.total_bytes for device in devices]
    weights = model.tensor_split or [size for size in memory if size]
    if len(weights) != len(devices):
        weights = [1] * len(devices)
    return tuple(weight / sum(weights) for weight in weights)


def part_on(model: ModelConfig, device: Device, deployment: Sequence[Device]) -> float:
    """The part of this device: 1 for a model that it has alone, 0 for one that has no part on it."""
    if len(model.devices) < 2:
        return float(owns(model, device, deployment))
    if device.name not in model.devices or missing_devices(model, deployment):
        return 0.0
    devices = [each for name in model.devices for each in deployment if each.name == name]
    return parts(model, devices)[model.devices.index(device.name)]


def quota_part(device: Device, deployment: Sequence[Device]) -> float:
    """The part of the CPU quota that is for the engines of this device: that of its CPUs among those of all devices on the CPU.

    Engines on a GPU mostly wait, so nothing is kept for them.
    """
    on_cpu = [each for each in deployment if each.kind is DeviceKind.CPU]
    if device.kind is not DeviceKind.CPU or len(on_cpu) < 2:
        return 1.0
    return len(device.cpus or ()) / sum(len(each.cpus or ()) for each in on_cpu)


def is_guest(model: ModelConfig, device: Device, deployment: Sequence[Device]) -> bool:
    """Does another launcher own this model, and take `part_on` of this device's memory?"""
    return len(model.devices) > 1 and not owns(model, device, deployment) and part_on(model, device, deployment) > 0


def _matches(name: str, device: Device) -> bool:
    """Is this the device, or any device of its kind?"""
    return name in (device.name, device.kind)
