"""Slots by memory: the arithmetic that decides how many sequences fit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.config import EngineConfig

CELLS: Final = 256  # llama.cpp rounds the room of a sequence up to a multiple of this
# More slots than this add no speed, since arithmetic is then the limit.
MOST_ON_CPU: Final = 32
MOST_ON_GPU: Final = 128
# The share of the free memory for slots; the rest of a GPU's is for compute buffers.
CPU_SHARE: Final = 0.5
GPU_SHARE: Final = 0.8
SPARE_DIVISOR: Final = 4  # slots for each spare one


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotCost:
    """Bytes of one sequence: keys and values per token of its room, and a recurrent state of constant size."""

    bytes_per_token: int
    bytes_per_slot: int = 0

    def bytes_for(self, context_size: int) -> int:
        """Bytes of a slot with room for `context_size` tokens."""
        return self.bytes_per_slot + self.bytes_per_token * (-(-context_size // CELLS) * CELLS)


def slots_that_fit(cost: SlotCost | None, config: EngineConfig, *, memory_bytes: int, on_gpu: bool) -> int:
    """The fastest number of slots, as far as memory holds them beside the spare ones; 1 for an encoder, which has no cost."""
    if cost is None:
        return 1
    most = MOST_ON_GPU if on_gpu else MOST_ON_CPU
    if config.tuning is not None:
        most = config.tuning.slots
    most = min(most, config.most_slots or most, config.batch_tokens)
    spare = max(1, most // SPARE_DIVISOR) if config.spare_slots is None else config.spare_slots
    fitting = auto_slots(cost, context_size=config.context_size, memory_bytes=memory_bytes, most=most + spare)
    if config.spare_slots is None and fitting < most + spare:
        return max(1, min(most, fitting * SPARE_DIVISOR // (SPARE_DIVISOR + 1)))
    return max(1, fitting - spare)


def spare_slots(config: EngineConfig) -> int:
    """The spare slots beside `config.slots`: as configured, or a quarter."""
    return max(1, config.slots // SPARE_DIVISOR) if config.spare_slots is None else config.spare_slots


def auto_slots(cost: SlotCost, *, context_size: int, memory_bytes: int, most: int) -> int:
    """As many slots as the memory holds, from 1 to `most`. An allocation that fails is found later."""
    return max(1, min(most, memory_bytes // max(1, cost.bytes_for(context_size))))


def available_bytes(meminfo: str, *, limit: str = "max", used: str = "0") -> int:
    """Memory that a process may still take: MemAvailable of /proc/meminfo, or the rest of a cgroup limit if that is less."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    if not limit.strip().isdigit():
        return available
    return max(0, min(available, int(limit) - int(used)))


def host_bytes() -> int:
    """The share for slots of the memory that this machine, or the control group of this process, has free now."""
    group = Path("/sys/fs/cgroup")
    available = available_bytes(
        _text(Path("/proc/meminfo"), ""),
        limit=_text(group / "memory.max", "max"),
        used=_text(group / "memory.current", "0"),
    )
    return int(available * CPU_SHARE)


def _text(path: Path, otherwise: str) -> str:
    return path.read_text() if path.is_file() else otherwise
