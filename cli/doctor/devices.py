"""Findings about devices: the CPU, the GPUs with their driver and toolkit, the build of llama.cpp, and what does not fit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Final

from cli.doctor.findings import Finding, Level
from core.cpu_cores import Cores
from core.devices.build import build_command
from core.devices.inventory import Device, Inventory
from core.devices.names import DeviceKind
from core.memory_sizes import format_bytes

_PROBE_SECONDS: Final = 120.0
_COMPILERS: Final = {"nvcc": "CUDA", "hipcc": "HIP", "glslc": "Vulkan"}
_FOLDERS: Final = "/usr/local/cuda/bin:/opt/cuda/bin:/opt/rocm/bin"
_RELEASE: Final = re.compile(r"(?:release|HIP version:|v)\s*(\d+\.\d+)")
_INSTALL: Final = "Install the card's driver; inside a container, pass the cards in (--gpus all)."


def devices(
    inventory: Inventory, cores: Cores, probe: Callable[[], str | None] | None = None, toolkits: str | None = None
) -> list[Finding]:
    """Report each device, then the GPUs' driver, toolkit and build. `probe` returns the reason why llama.cpp sees no GPU."""
    found = [Finding(Level.OK, f"device {device.name}", _describe(device)) for device in inventory.devices]
    found.append(Finding(Level.OK, "threads", cores.reason))
    return [*found, gpu(inventory, probe or _probe, _toolkits() if toolkits is None else toolkits)]


def gpu(inventory: Inventory, probe: Callable[[], str | None], toolkits: str = "") -> Finding:
    """Check that driver, toolkit and build of llama.cpp fit each other."""
    problem, advice, level = _mismatch(inventory, probe, toolkits)
    parts = [problem or _uses(inventory)]
    driver = f"driver {inventory.driver}" + (f" (CUDA {inventory.cuda})" if inventory.cuda else "")
    parts += [driver] if inventory.driver else []
    parts += [f"toolkit: {toolkits}"] if toolkits else []
    parts.append(f"llama.cpp is built for {inventory.build.title}")
    return Finding(level, "gpu", "; ".join(parts), advice)


def _mismatch(inventory: Inventory, probe: Callable[[], str | None], toolkits: str) -> tuple[str, str, Level]:
    """The first thing that does not fit, its remedy, and how bad it is; empty if all fits."""
    build, cards = inventory.build, ", ".join(gpu.card for gpu in inventory.gpus)
    if inventory.problem:
        advice = "After an update of the driver, restart the machine; else install the driver again."
        return f"the driver does not answer: {inventory.problem}", advice, Level.WARNING
    if not build.kinds:
        if not cards:
            return "", _INSTALL if inventory.driver else "", Level.OK
        kind = inventory.gpus[0].kind
        first = "" if toolkits else f"Install the toolkit of the card ({_toolkit(kind)}), then build"
        return f"{cards}: not used", f"{first or 'Build'} it for the card: {build_command(kind)}", Level.WARNING
    if not inventory.usable_gpus:
        if cards:
            kind = inventory.gpus[0].kind
            return f"{cards}: not used", f"Build it for the card: {build_command(kind)}", Level.WARNING
        return "no card is found, so models run on the CPU", _INSTALL, Level.WARNING
    if _is_older(inventory.cuda, build.cuda):
        advice = f"Update the driver, or build with CUDA {inventory.cuda.partition('.')[0]}: {build_command()}"
        return f"{cards}: the driver is too old for CUDA {build.cuda}", advice, Level.BAD
    if reason := probe():
        return (
            f"{cards}: llama.cpp cannot use them: {reason}",
            f"{_INSTALL} Or build it again: {build_command()}",
            Level.BAD,
        )
    return "", "", Level.OK


def _uses(inventory: Inventory) -> str:
    number = len(inventory.usable_gpus)
    return f"{number} used" if number else "none found; models run on the CPU"


def _describe(device: Device) -> str:
    if device.total_bytes is None:
        return device.card or "its memory is not reported"
    free = "" if device.free_bytes is None else f"{format_bytes(device.free_bytes)} of "
    memory = f"{free}{format_bytes(device.total_bytes)}{' free' if free else ''}"
    return f"{device.card}, {memory}" if device.card else memory


def _is_older(driver: str, build: str) -> bool:
    """Is the CUDA that the driver runs older than that of the build? Within a major version all of them fit."""
    majors = [text.partition(".")[0] for text in (driver, build)]
    return all(major.isdigit() for major in majors) and int(majors[0]) < int(majors[1])


def _toolkit(kind: DeviceKind) -> str:
    return {DeviceKind.CUDA: "CUDA, nvcc", DeviceKind.HIP: "ROCm, hipcc"}.get(kind, "the Vulkan SDK, glslc")


def _toolkits() -> str:
    """The installed toolkits with their versions."""
    return ", ".join(
        f"{name} {version}".strip()
        for program, name in _COMPILERS.items()
        if (version := _version(program)) is not None
    )


def _version(program: str) -> str | None:
    """The version of a toolkit's compiler; None without it, empty where it does not tell."""
    compiler = shutil.which(program) or shutil.which(program, path=_FOLDERS)
    if compiler is None:
        return None
    try:
        done = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    found = _RELEASE.search(done.stdout)
    return found[1] if found else ""


def _probe() -> str | None:
    """Let llama.cpp list its GPUs in a process of its own: the reason why it has none, or None."""
    command = [sys.executable, "-P", "-m", "engine.process.list_gpus"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return type(error).__name__
    if done.returncode != 0:
        return next(reversed(done.stderr.strip().splitlines()), f"it ended with exit code {done.returncode}")
    return "it sees none" if done.stdout.strip() in ("", "[]") else None
