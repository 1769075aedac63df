"""Toolkits that compile llama.cpp for GPUs, and the choice of one by `GPU=`."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.install.children import Failed

CPU: Final = "cpu"
AUTO: Final = "auto"
# By compiler: environment variables that name the folder of its toolkit, and the usual folders.
HOMES: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "nvcc": (("CUDA_HOME", "CUDA_PATH"), ("/usr/local/cuda", "/opt/cuda")),
    "hipcc": (("ROCM_PATH",), ("/opt/rocm",)),
    "glslc": (("VULKAN_SDK",), ()),
}
_NVIDIA_CARDS: Final = Path("/proc/driver/nvidia/gpus")
_CARDS_OF_LINUX: Final = Path("/sys/class/drm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolkit:
    """A kind of GPU build: llama.cpp's option, the compiler that it needs, and the command that lists usable cards.

    `cmake` is a statement that fails at once where llama.cpp would fail after minutes.
    """

    kind: str
    name: str
    option: str
    compiler: str
    source: str
    check: str
    cmake: str = ""

    def find(self) -> Path | None:
        """The compiler: in the folder that an environment variable names, on PATH, or in its usual folder."""
        variables, usual = HOMES.get(self.compiler, ((), ()))
        named = [f"{os.environ[variable]}/bin" for variable in variables if os.environ.get(variable)]
        folders = [*named, os.environ.get("PATH", ""), *(f"{folder}/bin" for folder in usual)]
        found = shutil.which(self.compiler, path=os.pathsep.join(folders))
        return Path(found) if found else None

    def need(self) -> Path:
        """The compiler; raises Failed where there is none."""
        if found := self.find():
            return found
        raise Failed(f"GPU={self.kind} needs {self.compiler}, which was not found. It comes with {self.source}.")

    def version(self) -> str:
        """The output of the compiler for --version; empty where there is none."""
        compiler = self.find()
        command = [str(compiler), "--version"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout if compiler else ""


TOOLKITS: Final = {
    toolkit.kind: toolkit
    for toolkit in (
        Toolkit(
            kind="cuda", name="CUDA", option="-DGGML_CUDA=ON", compiler="nvcc", check="nvidia-smi",
            source="NVIDIA's CUDA toolkit, 11.8 or later (developer.nvidia.com/cuda-downloads)",
        ),
        Toolkit(
            kind="hip", name="HIP", option="-DGGML_HIP=ON", compiler="hipcc", check="rocminfo",
            source="AMD's ROCm, 6.1 or later, with hipblas and rocblas (rocm.docs.amd.com)",
        ),
        Toolkit(
            kind="vulkan", name="Vulkan", option="-DGGML_VULKAN=ON", compiler="glslc", check="vulkaninfo",
            source="Vulkan's tools (on Debian 13 or Ubuntu 24.04: apt install glslc libvulkan-dev spirv-headers)",
            cmake="find_package(Vulkan 1.3.275 REQUIRED COMPONENTS glslc)\n",
        ),
    )
}  # fmt: skip

_CARDS: Final = {"NVIDIA": ("0x10de", ("cuda", "vulkan")), "AMD": ("0x1002", ("hip", "vulkan"))}


def choose(
    asked: str, installed: str | None, *, nvidia: Path = _NVIDIA_CARDS, sysfs: Path = _CARDS_OF_LINUX
) -> Toolkit | None:
    """The toolkit that `GPU=` asks for, None for the CPU; nothing asked keeps what is installed. Raises Failed."""
    kind = asked.strip().lower() or installed or CPU
    if kind == AUTO:
        return _choose_by_card(_maker(nvidia, sysfs))
    if kind != CPU and kind not in TOOLKITS:
        raise Failed(f"GPU={asked} is not known: use {', '.join(TOOLKITS)}, cpu, or auto.")
    toolkit = TOOLKITS.get(kind)
    if toolkit and kind != installed:
        toolkit.need()
    if not asked and installed is None and (maker := _maker(nvidia, sysfs)):
        print(
            f"A GPU of {maker} is here: `make install GPU=auto` builds for it. This build is for the CPU.", flush=True
        )
    return toolkit


def _choose_by_card(maker: str | None) -> Toolkit | None:
    if maker is None:
        print("GPU=auto: no GPU of NVIDIA or AMD was found; the build is for the CPU.", flush=True)
        return None
    kinds = _CARDS[maker][1]
    toolkit = next((TOOLKITS[kind] for kind in kinds if TOOLKITS[kind].find()), None)
    if toolkit:
        print(
            f"GPU=auto: a GPU of {maker} and {toolkit.find()} were found; the build is for {toolkit.name}.", flush=True
        )
        return toolkit
    needed = TOOLKITS[kinds[0]]
    print(f"GPU=auto: a GPU of {maker} was found, but no {needed.compiler}; the build is for the CPU.", flush=True)
    print(f"To use the GPU, install {needed.source}, then: make install GPU={needed.kind}", flush=True)
    return None


def _maker(nvidia: Path, sysfs: Path) -> str | None:
    """The maker of a GPU of this machine, by the folders of NVIDIA's driver and of the kernel."""
    if nvidia.is_dir() and any(nvidia.iterdir()):
        return "NVIDIA"
    vendors = {path.read_text().strip() for path in sysfs.glob("card*/device/vendor")}
    return next((maker for maker, (vendor, _) in _CARDS.items() if vendor in vendors), None)
