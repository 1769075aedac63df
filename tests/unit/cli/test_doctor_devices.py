"""Findings about devices: what is there, and each way in which driver, toolkit and build do not fit each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.doctor import devices
from cli.doctor.findings import Level
from core.cpu_cores import Cores
from tests.support.devices import CUDA_BUILD, GIB, gpus, inventory

DRIVER = {"driver": "550.54", "cuda": "12.4"}
CORES = Cores(cpus=((0,), (1,)))


def gpu(folder: Path, reason: str | None = None, toolkits: str = "", **content: Any) -> tuple[Level, str, str]:
    found = devices.gpu(inventory(folder, **content), lambda: reason, toolkits)
    return found.level, found.message, found.advice


def test_each_device_is_named_with_its_memory(tmp_path: Path) -> None:
    content = {
        "gpus": gpus(2),
        "build": CUDA_BUILD,
        "memory": {"total_bytes": 64 * GIB, "free_bytes": 8 * GIB},
        **DRIVER,
    }
    found = devices.devices(inventory(tmp_path, **content), CORES, lambda: None, "CUDA 12.4")
    assert [(each.name, each.message) for each in found] == [
        ("device cpu", "Test CPU, 8.0 GiB of 64.0 GiB free"),
        ("device cuda:0", "Test card, 12.0 GiB of 24.0 GiB free"),
        ("device cuda:1", "Test card, 12.0 GiB of 24.0 GiB free"),
        ("threads", CORES.reason),
        ("gpu", "2 used; driver 550.54 (CUDA 12.4); toolkit: CUDA 12.4; llama.cpp is built for CUDA 12"),
    ]


def test_without_a_card_a_build_for_the_cpu_is_right(tmp_path: Path) -> None:
    assert gpu(tmp_path) == (Level.OK, "none found; models run on the CPU; llama.cpp is built for CPU", "")


def test_a_card_that_the_build_cannot_use_is_named_with_the_remedy(tmp_path: Path) -> None:
    level, message, advice = gpu(tmp_path, gpus=gpus(1), **DRIVER)
    assert (level, "Test card: not used; driver 550.54" in message) == (Level.WARNING, True)
    assert "Install the toolkit of the card (CUDA, nvcc), then build" in advice
    assert "GPU=cuda" in advice
    assert "Install" not in gpu(tmp_path, toolkits="CUDA 12.4", gpus=gpus(1))[2]
    assert "GPU=cuda" in gpu(tmp_path, gpus=gpus(1), build={"kinds": ["vulkan"]})[2]
    assert "ROCm, hipcc" in gpu(tmp_path, gpus=gpus(1, kind="hip"))[2]


@pytest.mark.parametrize(
    ("content", "reason", "level", "words"),
    [
        ({"build": CUDA_BUILD}, None, Level.WARNING, "no card is found, so models run on the CPU"),
        (
            {"problem": "Driver/library version mismatch"},
            None,
            Level.WARNING,
            "the driver does not answer: Driver/library",
        ),
        (
            {"gpus": gpus(1), "build": CUDA_BUILD, "driver": "470.1", "cuda": "11.4"},
            None,
            Level.BAD,
            "too old for CUDA 12",
        ),
        ({"gpus": gpus(1), "build": CUDA_BUILD, **DRIVER}, "it sees none", Level.BAD, "cannot use them: it sees none"),
        ({"gpus": gpus(1), "build": CUDA_BUILD, "cuda": "13.0"}, None, Level.OK, "1 used"),
        ({"gpus": gpus(1, kind="vulkan"), "build": {"kinds": ["vulkan"]}}, None, Level.OK, "built for Vulkan"),
    ],
)
def test_what_does_not_fit_is_found(
    tmp_path: Path, content: dict[str, Any], reason: str | None, level: Level, words: str
) -> None:
    found, message, advice = gpu(tmp_path, reason, **content)
    assert found is level
    assert words in message
    assert bool(advice) == (level is not Level.OK)


def test_llama_is_asked_in_a_process_of_its_own() -> None:
    assert devices._probe() == "it sees none", "the build of the tests is for the CPU"


def test_toolkits_are_found_by_their_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_FOLDERS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert devices._toolkits() == ""
    for name, said in (
        ("nvcc", "Cuda compilation tools, release 12.4, V12.4.131"),
        ("hipcc", "HIP version: 6.2.41133-0"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}'\n")
        (tmp_path / name).chmod(0o755)
    assert devices._toolkits() == "CUDA 12.4, HIP 6.2"
