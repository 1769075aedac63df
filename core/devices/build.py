"""The installed build of llama.cpp: the kinds of GPUs that it can use, and the CUDA that it was built with.

The names of its library files answer that, since loading llama.cpp takes a second.
"""

from __future__ import annotations

import mmap
import re
import shlex
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from core.devices.names import GPU_KINDS, DeviceKind
from core.settings import ROOT

_RUNTIME: Final = re.compile(rb"libcudart\.so\.(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The kinds of GPUs that llama.cpp was built for; `cuda` is the version of its CUDA runtime, empty where it is unknown."""

    kinds: tuple[DeviceKind, ...] = ()
    cuda: str = ""

    @property
    def title(self) -> str:
        """Its name in messages: `CUDA 12`, `Vulkan`, or `CPU`."""
        names = {DeviceKind.CUDA: f"CUDA {self.cuda}".strip(), DeviceKind.HIP: "HIP", DeviceKind.VULKAN: "Vulkan"}
        return " and ".join(names[kind] for kind in self.kinds) or "CPU"


def installed_build(libraries: Path | None = None) -> Build:
    """Look at the libraries of llama.cpp. `libraries`: their folder; default: that of the installed package."""
    folder = _libraries() if libraries is None else libraries
    kinds = tuple(kind for kind in GPU_KINDS if any(folder.glob(f"libggml-{kind}.*")))
    cuda = next(folder.glob(f"libggml-{DeviceKind.CUDA}.*"), None)
    return Build(kinds=kinds, cuda=_cuda_version(cuda) if cuda is not None else "")


def build_command(kind: DeviceKind = DeviceKind.CUDA, root: Path = ROOT) -> str:
    """The command that builds llama.cpp for GPUs of this kind; without a Makefile, as in an image, the image is built anew."""
    if (root / "Makefile").is_file():
        return f"make -C {shlex.quote(str(root))} install GPU={kind}"
    return f"docker build --build-arg GPU={kind} … (docs/containers.md)"


def _cuda_version(library: Path) -> str:
    """The version in the name of the CUDA runtime that a library needs; empty if that is linked statically."""
    with library.open("rb") as stream:
        if not stream.read(1):
            return ""
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _RUNTIME.search(content)
            return found[1].decode() if found else ""


def _libraries() -> Path:
    spec = find_spec("llama_cpp")
    return Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
