"""Selection of devices: a name that cannot be used is named with the reason and those that can be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.devices.inventory import Device
from core.devices.selection import choose_devices, default_devices
from core.errors import ConfigError
from tests.support.command import millrace
from tests.support.devices import CUDA_BUILD, GIB, gpus, inventory
from tests.support.stack import clean_environment

NODES = {
    "0": {"cpus": "0-3", "total_bytes": 10 * GIB, "free_bytes": 2 * GIB},
    "1": {"cpus": "4-7", "total_bytes": 10 * GIB, "free_bytes": 9 * GIB},
}
MACHINE: dict[str, Any] = {
    "cpus": "0-5",
    "memory": {"total_bytes": 12 * GIB, "free_bytes": 8 * GIB},
    "nodes": NODES,
    "gpus": gpus(3),
    "build": CUDA_BUILD,
}


def choose(folder: Path, *texts: str, cpus: tuple[str, ...] = (), **changed: Any) -> list[Device]:
    return list(choose_devices(texts, inventory(folder, **{**MACHINE, **changed}), cpus=cpus))


def names(devices: list[Device]) -> list[str]:
    return [device.name for device in devices]


def test_every_gpu_is_used_unless_others_are_named(tmp_path: Path) -> None:
    assert names(choose(tmp_path)) == ["cuda:0", "cuda:1", "cuda:2"]
    assert names(choose(tmp_path, "cuda:2,cpu")) == ["cuda:2", "cpu"]
    assert names(choose(tmp_path, "cuda:2", "cuda:0")) == ["cuda:2", "cuda:0"]


def test_a_kind_stands_for_all_of_its_gpus(tmp_path: Path) -> None:
    assert names(choose(tmp_path, "cuda")) == ["cuda:0", "cuda:1", "cuda:2"]
    assert names(choose(tmp_path, "cpu@0-1,3", "cuda")) == ["cpu@0-1,3", "cuda:0", "cuda:1", "cuda:2"]
    with pytest.raises(ConfigError, match="There is no cuda device: this machine has cpu"):
        choose(tmp_path, "cuda", gpus=[])
    with pytest.raises(ConfigError, match="The device vulkan cannot be used: llama.cpp was built without Vulkan"):
        choose(tmp_path, "vulkan")


def test_the_cpu_is_used_where_there_is_no_gpu_or_no_build_for_it(tmp_path: Path) -> None:
    assert default_devices(inventory(tmp_path, gpus=gpus(2))) == ("cpu",)
    assert default_devices(inventory(tmp_path, gpus=gpus(2), build={"kinds": ["vulkan"]})) == ("cpu",)
    assert default_devices(inventory(tmp_path, build=CUDA_BUILD)) == ("cpu",)
    assert default_devices(inventory(tmp_path)) == ("cpu",)


def test_a_build_for_two_kinds_uses_each_card_once(tmp_path: Path) -> None:
    both = [*gpus(1), *gpus(1, kind="vulkan")]
    assert names(choose(tmp_path, gpus=both, build={"kinds": ["cuda", "vulkan"]})) == ["cuda:0"]
    assert names(choose(tmp_path, "vulkan:0", gpus=both, build={"kinds": ["cuda", "vulkan"]})) == ["vulkan:0"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["cuda:3"], "There is no device cuda:3: this machine has cpu, cuda:0, cuda:1, cuda:2"),
        (["cuda:0,cpu,cuda:0"], "The device cuda:0 is named twice"),
        (["cuda:0@0", "cuda:0@1"], "The device cuda:0 is named twice"),
        (["cpu@0-2,cpu@2-4"], "cpu@0-2 and cpu@2-4 share the CPUs 2:"),
        (["cpu,cpu@5"], "cpu and cpu@5 share the CPUs 5:"),
        (["cpu@node0,cpu@3"], "cpu@node0 and cpu@3 share the CPUs 3:"),
        (["cpu@4-7"], "cpu@4-7: there is no CPU 6-7 for this process, which may use 0-5"),
        (["cpu@node2"], r"no NUMA node 2: this machine has node0 \(CPUs 0-3\), node1 \(CPUs 4-7\)"),
        (["vulkan:0"], "vulkan:0 cannot be used: llama.cpp was built without Vulkan.*install GPU=vulkan"),
        (["hip:0"], "hip:0 cannot be used: llama.cpp was built without HIP.*install GPU=hip"),
    ],
)
def test_a_device_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(tmp_path, *texts)


def test_a_node_without_a_cpu_of_this_process_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="may use no CPU of the node, only 0-3"):
        choose_devices(["cpu@node1"], inventory(tmp_path, nodes=NODES, cpus="0-3"))


def test_a_driver_that_does_not_work_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no device cuda:0: this machine has cpu\. The driver reports: Driver/library"
    ):
        choose(tmp_path, "cuda:0", gpus=[], problem="Driver/library version mismatch")


def test_cpus_pin_one_device_or_make_one_of_each(tmp_path: Path) -> None:
    assert [device.cpus for device in choose(tmp_path, "cpu", cpus=("0-2",))] == [(0, 1, 2)]
    assert [device.cpus for device in choose(tmp_path, "cpu", cpus=("node1",))] == [(4, 5)]
    assert names(choose(tmp_path, "cpu", cpus=("0-2", "3-5"))) == ["cpu@0-2", "cpu@3-5"]
    pinned = choose(tmp_path, "cuda:1", cpus=("node0",))
    assert (names(pinned), pinned[0].cpus) == (["cuda:1"], (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("texts", "cpus"), [([], ("0",)), (["cuda:0,cpu"], ("0",)), (["cpu@0"], ("1",)), (["cuda:0"], ("0", "1"))]
)
def test_cpus_of_more_than_one_device_are_written_after_their_names(
    tmp_path: Path, texts: list[str], cpus: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="--cpus pins one device, not .*cuda:0@0-15"):
        choose(tmp_path, *texts, cpus=cpus)


def test_devices_on_the_cpu_share_its_memory(tmp_path: Path) -> None:
    def memory(*texts: str) -> list[tuple[float, float]]:
        devices = choose(tmp_path, *texts)
        return [((device.total_bytes or 0) / GIB, (device.free_bytes or 0) / GIB) for device in devices]

    assert memory("cpu") == [(12, 8)]
    assert memory("cpu@0,cpu@4") == [(6, 4), (6, 4)]
    assert memory("cpu@node0") == [(10, 2)]
    assert memory("cpu@node0,cpu@node1") == [(6, 2), (6, 4)]
    assert memory("cpu,cuda:0") == [(12, 8), (24, 12)]


UNUSABLE = [
    ("cuda:0", "auto", "The device cuda:0 cannot be used"),
    ("cpu", "cuda:7=5GiB", "device_memory: there is no device cuda:7. There are: cpu"),
]


@pytest.mark.parametrize(("device", "memory", "message"), UNUSABLE)
def test_a_worker_on_a_device_that_it_cannot_use_ends_at_once(device: str, memory: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "workers", "--device", device],
        env=clean_environment() | {"MILLRACE_DEVICE_MEMORY": memory}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"millrace worker: {message}")


@pytest.mark.parametrize(("device", "memory", "message"), UNUSABLE)
def test_serve_on_a_device_that_it_cannot_use_starts_nothing(
    tmp_path: Path, device: str, memory: str, message: str
) -> None:
    environment = {"MILLRACE_DEVICE_MEMORY": memory}
    done = millrace("serve", "--device", device, "--state-dir", "state", cwd=tmp_path, **environment)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "state").exists()
