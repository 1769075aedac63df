"""Devices: a GPU is refused where llama.cpp was built without one, and is not the default there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.devices import check_device, has_gpu, has_gpu_build
from core.errors import ConfigError
from tests.support.command import millrace
from tests.support.stack import clean_environment


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:", "cuda:a", "cpu:0", ""])
def test_an_unknown_device_is_named_with_those_that_are_known(device: str) -> None:
    with pytest.raises(ConfigError, match="use cpu, cuda:0"):
        check_device(device)


def test_a_gpu_needs_a_build_for_it(tmp_path: Path) -> None:
    (tmp_path / "libggml-cpu.so").touch()
    check_device("cpu", tmp_path)
    with pytest.raises(ConfigError, match=r"without CUDA.*CMAKE_ARGS=-DGGML_CUDA=on .* llama-cpp-python=="):
        check_device("cuda:0", tmp_path)
    (tmp_path / "libggml-cuda.so").touch()
    check_device("cuda:0", tmp_path)


def test_the_installed_build_is_found() -> None:
    assert not has_gpu_build(), "the build of the tests is for the CPU"


def test_a_card_is_one_that_the_driver_lists(tmp_path: Path) -> None:
    assert not has_gpu(tmp_path / "gpus")
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert has_gpu(tmp_path / "gpus")


def test_a_worker_on_a_gpu_that_it_cannot_use_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "workers", "--device", "cuda:0"],
        env=clean_environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("millrace worker: The device cuda:0 cannot be used")


def test_serve_on_a_gpu_that_it_cannot_use_starts_nothing(tmp_path: Path) -> None:
    done = millrace("serve", "--device", "cuda:0", "--state-dir", "state", cwd=tmp_path)
    assert done.returncode == 1
    assert "The device cuda:0 cannot be used" in done.stderr
    assert not (tmp_path / "state").exists()
