"""NVIDIA cards and their driver: by NVML where the extra `gpu` is installed, else by nvidia-smi, else by the driver's files.

The files count and name the cards, and do not have their memory. The order is that of nvidia-smi, by PCI bus.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from core.cgroups import read_text
from core.devices.host_memory import Memory

_DRIVER_FILES: Final = Path("/proc/driver/nvidia")
_SMI_SECONDS: Final = 30.0
_MIB: Final = 1 << 20
_NO_MEMORY: Final = Memory(total_bytes=None, free_bytes=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaCard:
    """A card; `id` is its UUID, or its number where that is unknown."""

    id: str
    name: str
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvidia:
    """All cards, the version of the driver, and the newest CUDA that the driver runs; `problem` is the driver's own message."""

    cards: tuple[NvidiaCard, ...] = ()
    driver: str = ""
    cuda: str = ""
    problem: str = ""


def read_nvidia(files: Path = _DRIVER_FILES) -> Nvidia:
    """Read the cards by the first way that works."""
    problem = ""
    for read in (_by_nvml, _by_smi):
        found = read()
        if found is not None and found.cards:
            return found
        problem = problem or (found.problem if found else "")
    return _by_files(files, problem)


def card_memory(card_id: str) -> Memory | None:
    """The memory of a card as it is now, by NVML; None without it, since to run nvidia-smi again and again takes too much."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        return _nvml_card(pynvml, _nvml_handle(pynvml, card_id)).memory
    except pynvml.NVMLError:
        return None


def card_utilization(card_id: str) -> float | None:
    """The part of the last moment in which a card computed, from 0 to 1, by NVML; None without it."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(_nvml_handle(pynvml, card_id)).gpu) / 100
    except pynvml.NVMLError:
        return None


def _nvml_handle(nvml: Any, card_id: str) -> Any:  # Any: a module without types, and its pointer
    nvml.nvmlInit()
    is_number = card_id.isdigit()
    find = nvml.nvmlDeviceGetHandleByIndex if is_number else nvml.nvmlDeviceGetHandleByUUID
    return find(int(card_id) if is_number else card_id.encode())


def _by_nvml() -> Nvidia | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Nvidia(problem=str(error))
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        version = pynvml.nvmlSystemGetCudaDriverVersion()
        cards = tuple(_nvml_card(pynvml, handle) for handle in handles)
        cuda = f"{version // 1000}.{version % 1000 // 10}"
        return Nvidia(cards=cards, driver=_text(pynvml.nvmlSystemGetDriverVersion()), cuda=cuda)
    except pynvml.NVMLError as error:
        return Nvidia(problem=str(error))
    finally:
        pynvml.nvmlShutdown()


def _nvml_card(nvml: Any, handle: Any) -> NvidiaCard:  # Any: a module without types, and its pointer
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        bytes_of = Memory(total_bytes=int(memory.total), free_bytes=int(memory.free))
    except nvml.NVMLError:  # a card that shares the memory of the machine has none of its own
        bytes_of = _NO_MEMORY
    return NvidiaCard(
        id=_text(nvml.nvmlDeviceGetUUID(handle)), name=_text(nvml.nvmlDeviceGetName(handle)), memory=bytes_of
    )


def _text(value: str | bytes) -> str:
    """Text of NVML, which older bindings return as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _by_smi() -> Nvidia | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "-q", "-x"], capture_output=True, text=True, timeout=_SMI_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_smi(done.stdout) if done.returncode == 0 else Nvidia(problem=(done.stdout + done.stderr).strip()[:200])


def parse_smi(text: str) -> Nvidia | None:
    """Read the XML of `nvidia-smi -q -x`; None if it is none."""
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - written by the driver's own program
    except ElementTree.ParseError:
        return None
    cards = tuple(
        NvidiaCard(
            id=gpu.findtext("uuid") or str(number),
            name=gpu.findtext("product_name") or "NVIDIA card",
            memory=Memory(
                total_bytes=_mib(gpu.findtext("fb_memory_usage/total")),
                free_bytes=_mib(gpu.findtext("fb_memory_usage/free")),
            ),
        )
        for number, gpu in enumerate(root.iter("gpu"))
    )
    return Nvidia(cards=cards, driver=root.findtext("driver_version") or "", cuda=root.findtext("cuda_version") or "")


def _mib(text: str | None) -> int | None:
    """Bytes of `81559 MiB`; None for `N/A`."""
    number = (text or "").partition(" ")[0]
    return int(number) * _MIB if number.isdigit() else None


def _by_files(files: Path, problem: str) -> Nvidia:
    folders = sorted((files / "gpus").iterdir()) if (files / "gpus").is_dir() else []
    cards = []
    for number, folder in enumerate(folders):
        lines = [line.partition(":") for line in read_text(folder / "information").splitlines()]
        values = {name.strip(): value.strip() for name, _, value in lines}
        uuid = values.get("GPU UUID", "")
        known = uuid if uuid.startswith("GPU-") and "?" not in uuid else str(number)  # unknown until the card is used
        cards.append(NvidiaCard(id=known, name=values.get("Model") or folder.name, memory=_NO_MEMORY))
    words = read_text(files / "version").partition("Kernel Module")[2].split()
    driver = next((word for word in words if word[:1].isdigit()), "")
    return Nvidia(cards=tuple(cards), driver=driver, problem=problem)
