"""Devices: their names, the default one, and whether the installed llama.cpp can use a GPU.

The names of its library files answer the latter, since loading llama.cpp takes a second.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from core.errors import ConfigError

CPU: Final = "cpu"
_GPUS: Final = Path("/proc/driver/nvidia/gpus")
_BACKENDS: Final = ("cuda", "hip", "vulkan", "sycl", "musa")


def default_device() -> str:
    """The first GPU, or the CPU where there is none or llama.cpp cannot use it."""
    return "cuda:0" if has_gpu() and has_gpu_build() else CPU


def check_device(device: str, libraries: Path | None = None) -> None:
    """Raise ConfigError for an unknown name, and for a GPU that llama.cpp was not built for."""
    kind, _, number = device.partition(":")
    if device != CPU and (kind != "cuda" or not number.isdigit()):
        raise ConfigError(f"Unknown device {device!r}: use cpu, cuda:0, cuda:1, …")
    if device != CPU and not has_gpu_build(libraries):
        raise ConfigError(
            f"The device {device} cannot be used: llama.cpp was built without CUDA. "
            f"Use --device cpu, or build it with CUDA: {build_command()}"
        )


def build_command() -> str:
    """The command that builds the same version of llama.cpp with CUDA."""
    package = f"llama-cpp-python=={version('llama-cpp-python')}"
    return f"CMAKE_ARGS=-DGGML_CUDA=on {sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps {package}"


def has_gpu(gpus: Path = _GPUS) -> bool:
    """Does the driver list a GPU?"""
    return gpus.is_dir() and any(gpus.iterdir())


def has_gpu_build(libraries: Path | None = None) -> bool:
    """Was llama.cpp built for GPUs? `libraries`: its folder; default: that of the installed package."""
    folder = _libraries() if libraries is None else libraries
    return any(path.name.startswith(f"libggml-{name}.") for path in folder.glob("libggml-*") for name in _BACKENDS)


def _libraries() -> Path:
    spec = find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
