"""Fake devices: an inventory without hardware, as a value and as the file that replaces the machine's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.devices.inventory import TEST_VARIABLE, Inventory, read_inventory

GIB = 1 << 30
CUDA_BUILD = {"kinds": ["cuda"], "cuda": "12"}


def gpus(number: int, *, kind: str = "cuda", gib: int = 24) -> list[dict[str, Any]]:
    """Cards of one kind, half of whose memory is free."""
    return [
        {"name": f"{kind}:{index}", "card": "Test card", "total_bytes": gib * GIB, "free_bytes": gib * GIB // 2}
        for index in range(number)
    ]


def fake_devices(folder: Path, **content: Any) -> dict[str, str]:
    """Write an inventory; return the environment that makes a process use it."""
    file = folder / "devices.json"
    file.write_text(json.dumps(content))
    return {TEST_VARIABLE: str(file)}


def inventory(folder: Path, **content: Any) -> Inventory:
    """An inventory with this content."""
    return read_inventory(fake_devices(folder, **content))
