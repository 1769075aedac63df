"""Inventory: what a driver, the system and the build of llama.cpp report, read from trees of files as they show it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from core.devices.build import Build, build_command, installed_build
from core.devices.environment import device_environment
from core.devices.host_memory import Memory, host_memory, numa_nodes
from core.devices.inventory import Device, read_inventory
from core.devices.names import DeviceKind
from core.devices.nvidia import parse_smi, read_nvidia
from tests.support.devices import CUDA_BUILD, fake_devices, gpus

GIB = 1 << 30
SMI = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <driver_version>550.54.15</driver_version>
  <cuda_version>12.4</cuda_version>
  <attached_gpus>2</attached_gpus>
  <gpu id="00000000:01:00.0">
    <product_name>NVIDIA H100</product_name>
    <uuid>GPU-aa</uuid>
    <fb_memory_usage><total>81559 MiB</total><reserved>1 MiB</reserved><free>81000 MiB</free></fb_memory_usage>
  </gpu>
  <gpu id="00000000:02:00.0">
    <product_name>NVIDIA GB10</product_name>
    <uuid>GPU-bb</uuid>
    <fb_memory_usage><total>N/A</total><free>N/A</free></fb_memory_usage>
  </gpu>
</nvidia_smi_log>
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def driver_files(folder: Path) -> Path:
    write(folder / "gpus/0000:02:00.0/information", "Model: \t NVIDIA L4\nGPU UUID: \t GPU-????????-????\n")
    write(folder / "gpus/0000:01:00.0/information", "Model: \t NVIDIA L4\nGPU UUID: \t GPU-cc\n")
    write(folder / "version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.1.2  Release Build\n")
    return folder


@pytest.fixture(autouse=True)
def _no_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def program(folder: Path, name: str, script: str) -> None:
    write(folder / "bin" / name, f"#!/bin/sh\n{script}\n")
    (folder / "bin" / name).chmod(0o755)


def test_cards_are_those_of_the_drivers_files(tmp_path: Path) -> None:
    found = read_nvidia(driver_files(tmp_path / "nvidia"))
    assert [(card.id, card.name) for card in found.cards] == [("GPU-cc", "NVIDIA L4"), ("1", "NVIDIA L4")]
    assert found.driver == "570.1.2"
    assert not read_nvidia(tmp_path / "none").cards


def test_nvidia_smi_has_their_memory_too(tmp_path: Path) -> None:
    write(tmp_path / "smi.xml", SMI)
    program(tmp_path, "nvidia-smi", f"/bin/cat {tmp_path}/smi.xml")
    found = read_nvidia(driver_files(tmp_path / "nvidia"))
    assert (found.driver, found.cuda) == ("550.54.15", "12.4")
    assert [(card.id, card.name, card.memory) for card in found.cards] == [
        ("GPU-aa", "NVIDIA H100", Memory(total_bytes=81559 << 20, free_bytes=81000 << 20)),
        ("GPU-bb", "NVIDIA GB10", Memory(total_bytes=None, free_bytes=None)),
    ]


def test_a_driver_that_does_not_answer_leaves_its_files_and_its_message(tmp_path: Path) -> None:
    program(tmp_path, "nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    found = read_nvidia(driver_files(tmp_path / "nvidia"))
    assert len(found.cards) == 2
    assert "Driver/library version mismatch" in found.problem
    assert parse_smi("no XML") is None


def test_nvml_is_asked_first_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    nvml = ModuleType("pynvml")
    functions = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _: b"NVIDIA H200",
        "nvmlDeviceGetUUID": lambda _: "GPU-dd",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=141 * GIB, free=140 * GIB),
        "nvmlSystemGetDriverVersion": lambda: "575.1",
        "nvmlSystemGetCudaDriverVersion": lambda: 12090,
    }
    for name, function in functions.items():
        setattr(nvml, name, function)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = read_nvidia(driver_files(tmp_path / "nvidia"))
    assert (found.driver, found.cuda) == ("575.1", "12.9")
    assert [(card.id, card.name, card.memory.total_bytes) for card in found.cards] == [
        ("GPU-dd", "NVIDIA H200", 141 * GIB)
    ]


@pytest.mark.parametrize(
    ("chosen", "ids"), [("1", ["GPU-bb"]), ("1,0", ["GPU-bb", "GPU-aa"]), ("GPU-b", ["GPU-bb"]), ("", []), ("-1,0", [])]
)
def test_only_cards_that_this_process_may_see_are_devices(tmp_path: Path, chosen: str, ids: list[str]) -> None:
    write(tmp_path / "smi.xml", SMI)
    program(tmp_path, "nvidia-smi", f"/bin/cat {tmp_path}/smi.xml")
    found = read_inventory({"CUDA_VISIBLE_DEVICES": chosen})
    assert [gpu.id for gpu in found.gpus] == ids
    assert [gpu.name for gpu in found.gpus] == [f"cuda:{number}" for number in range(len(ids))]


def test_this_machine_has_a_cpu_with_memory() -> None:
    found = read_inventory({})
    cpu = found.get("cpu")
    assert cpu is not None
    assert 0 < (cpu.free_bytes or 0) < (cpu.total_bytes or 0)
    assert found.cpus == tuple(sorted(os.sched_getaffinity(0)))
    assert found.build == Build(), "the build of the tests is for the CPU"


def test_a_process_is_limited_to_its_devices(tmp_path: Path) -> None:
    content = {"gpus": [*gpus(3), *gpus(2, kind="hip")], "build": CUDA_BUILD}
    _, first, _, third, *hip = read_inventory(fake_devices(tmp_path, **content)).devices
    assert device_environment([first, third])["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert device_environment([hip[1]], {}) == {"HIP_VISIBLE_DEVICES": "1"}
    assert device_environment([hip[1]], {"HIP_VISIBLE_DEVICES": "4,6"}) == {"HIP_VISIBLE_DEVICES": "6"}
    hidden = device_environment([Device(name="cpu", kind=DeviceKind.CPU)])
    assert hidden["CUDA_VISIBLE_DEVICES"] == ""


def test_the_build_is_known_by_its_libraries(tmp_path: Path) -> None:
    (tmp_path / "libggml-cpu.so").touch()
    assert (installed_build(tmp_path), installed_build(tmp_path).title) == (Build(), "CPU")
    (tmp_path / "libggml-cuda.so").write_bytes(b"\x7fELF\0libcublas.so.12\0libcudart.so.12\0")
    assert installed_build(tmp_path) == Build(kinds=(DeviceKind.CUDA,), cuda="12")
    (tmp_path / "libggml-vulkan.so").touch()
    assert installed_build(tmp_path).title == "CUDA 12 and Vulkan"


MEMINFO = "MemTotal:   16777216 kB\nMemFree: 100 kB\nMemAvailable:    8388608 kB\n"


def test_memory_is_that_of_the_machine(tmp_path: Path) -> None:
    write(tmp_path / "proc/meminfo", MEMINFO)
    assert host_memory(tmp_path / "sys", tmp_path / "proc") == Memory(total_bytes=16 * GIB, free_bytes=8 * GIB)
    assert host_memory(tmp_path, tmp_path) == Memory(total_bytes=None, free_bytes=None)


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_a_cgroup_or_of_one_above_it_counts(tmp_path: Path, version: int) -> None:
    sys_folder, proc = tmp_path / "sys", tmp_path / "proc"
    write(proc / "meminfo", MEMINFO)
    names = (
        ("memory.max", "memory.current", "") if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    )  # fmt: skip
    write(proc / "self/cgroup", "0::/app/part\n" if version == 2 else "4:memory:/app/part\n")
    group = sys_folder / "fs/cgroup" / ("app" if version == 2 else "memory/app")
    write(group / names[0], f"{4 * GIB}\n")
    write(group / names[1], f"{3 * GIB}\n")
    write(group / "memory.stat", f"{names[2]}inactive_file {GIB}\n{names[2]}active_file {GIB}\n")
    write(group / "part" / names[0], "max\n" if version == 2 else f"{1 << 62}\n")
    assert host_memory(sys_folder, proc) == Memory(total_bytes=4 * GIB, free_bytes=3 * GIB)


def test_nodes_have_cpus_and_memory(tmp_path: Path) -> None:
    nodes = tmp_path / "devices/system/node"
    for number, cpus in ((0, "0-3,8-11"), (1, "4-7"), (2, "")):
        write(nodes / f"node{number}/cpulist", f"{cpus}\n")
        text = "Node 0 MemTotal: 8388608 kB\nNode 0 MemFree: 1048576 kB\nNode 0 FilePages: 1048576 kB\n"
        write(nodes / f"node{number}/meminfo", text)
    found = numa_nodes(tmp_path)
    assert list(found) == [0, 1], "node 2 has memory alone"
    assert found[0].cpus == (0, 1, 2, 3, 8, 9, 10, 11)
    assert found[1].memory == Memory(total_bytes=8 * GIB, free_bytes=2 * GIB)


def test_the_build_for_gpus_is_made_by_make_or_by_docker_where_there_is_no_makefile(tmp_path: Path) -> None:
    assert build_command(DeviceKind.HIP, tmp_path) == "docker build --build-arg GPU=hip … (docs/containers.md)"
    (tmp_path / "Makefile").touch()
    assert build_command(DeviceKind.HIP, tmp_path) == f"make -C {tmp_path} install GPU=hip"
