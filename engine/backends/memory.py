"""How many sequences fit into memory. Arithmetic only: who measures, and on which device, is not known here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_CELLS: Final = 256  # llama.cpp rounds a sequence's room up to a multiple of this


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotCost:
    """Bytes that a sequence takes: keys and values of each token of its room, and what a recurrent state takes at any length."""

    bytes_per_token: int
    bytes_per_slot: int = 0

    def of(self, context_size: int) -> int:
        """Bytes of a slot with room for `context_size` tokens."""
        return self.bytes_per_slot + self.bytes_per_token * (-(-context_size // _CELLS) * _CELLS)


def auto_slots(cost: SlotCost, *, context_size: int, memory_bytes: int, most: int) -> int:
    """As many slots as the memory holds, from 1 to `most`. Whether a single one fits is found out when it is allocated."""
    return max(1, min(most, memory_bytes // max(1, cost.of(context_size))))


def available_bytes(meminfo: str, *, limit: str = "max", used: str = "0") -> int:
    """Memory a process may still take: /proc/meminfo's MemAvailable, or what a cgroup's limit leaves where that is less."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    if not limit.strip().isdigit():
        return available
    return max(0, min(available, int(limit) - int(used)))
