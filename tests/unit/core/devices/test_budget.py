"""Budgets of devices: the setting `device_memory`, or a share of their memory; a device that there is not is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.devices.budget import UNLIMITED, check_device_memory, device_budget
from core.devices.inventory import Device
from core.devices.names import DeviceKind
from core.devices.selection import choose_devices
from core.errors import ConfigError
from core.settings import load_settings
from tests.support.devices import CUDA_BUILD, GIB, gpus, inventory

MIB = 1 << 20
CPU = Device(name="cpu", kind=DeviceKind.CPU, total_bytes=1000 * MIB)
PINNED = Device(name="cpu@0-3", kind=DeviceKind.CPU)


@pytest.mark.parametrize(
    ("setting", "device", "budget"),
    [
        ("auto", CPU, 800 * MIB),
        ("auto", Device(name="cuda:0", kind=DeviceKind.CUDA, total_bytes=2000, free_bytes=1000), 900),
        ("auto", Device(name="cuda:0", kind=DeviceKind.CUDA), UNLIMITED),
        ("100MiB", CPU, 100 * MIB),
        ("cpu=5MiB", CPU, 5 * MIB),
        ("cuda:0=5MiB", CPU, 800 * MIB),
        ("3MiB,cpu=5MiB", PINNED, 5 * MIB),
        ("cpu=5MiB,cpu@0-3=7MiB", PINNED, 7 * MIB),
        ("cpu@3,0-2=7MiB", PINNED, 7 * MIB),
        ("cuda:0@0-3=7MiB", Device(name="cuda:0", kind=DeviceKind.CUDA), 7 * MIB),
        ("1MiB,cpu=5MiB", CPU, 5 * MIB),
    ],
)
def test_the_budget_is_the_setting_or_a_share_of_the_memory(setting: str, device: Device, budget: int) -> None:
    assert device_budget(load_settings(device_memory=setting), device) == budget


def checked(folder: Path, setting: str) -> list[int]:
    """The budgets of a worker on two devices, once the setting is checked."""
    machine = inventory(folder, cpus="0-7", memory={"total_bytes": 10 * GIB}, gpus=gpus(2, gib=20), build=CUDA_BUILD)
    settings, devices = load_settings(device_memory=setting), choose_devices(["cpu@0-3", "cuda:0"], machine)
    check_device_memory(settings, devices, machine)
    return [device_budget(settings, device) // GIB for device in devices]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cuda:2=5GiB", r"device_memory: there is no device cuda:2\. There are: cpu, cuda:0, cuda:1, cpu@0-3\."),
        ("hip=5GiB", r"device_memory: there is no device hip\. There are: cpu, cuda:0"),
        ("cpu@0-4=5GiB", r"device_memory: there is no device cpu@0-4\. There are: .*, cpu@0-3\."),
        ("gpu0=5GiB", "device_memory: Unknown device 'gpu0': use cpu, cuda:0"),
        ("cpu@0-3=1GiB,cpu@3,0-2=2GiB", "device_memory has two sizes for cpu@0-3"),
    ],
)
def test_a_device_that_there_is_not_is_named_with_those_that_there_are(
    tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(tmp_path, setting)


@pytest.mark.parametrize(
    ("setting", "budgets"),
    [
        ("auto", [8, 9]),
        ("5GiB", [5, 5]),
        ("1GiB,cuda:1=5GiB", [1, 1]),
        ("cuda=5GiB", [8, 5]),
        ("cpu=1GiB,cpu@3,0-2=2GiB", [2, 9]),
    ],
)
def test_devices_of_the_machine_and_of_the_worker_are_accepted(
    tmp_path: Path, setting: str, budgets: list[int]
) -> None:
    assert checked(tmp_path, setting) == budgets
