"""Sizes of memory: `900MiB` and `8 GB` as bytes, and the setting that gives each device its budget.

Imports nothing of ours.
"""

from __future__ import annotations

import re
from typing import Final

AUTO: Final = "auto"
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_BETWEEN_DEVICES: Final = re.compile(r",(?!\s*\d)")  # a name may have a list of CPUs: cpu@0-3,8-11=4GiB
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Return the bytes of `1048576`, `900MiB`, `8GB` or `8G`; units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a number with KiB, MiB or GiB, such as 900MiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(number: int) -> str:
    """Return a size for people, such as `1.5 GiB`."""
    size = float(number)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def parse_device_memory(text: str) -> dict[str, int | None]:
    """Return the budget of each device that the setting `device_memory` names; None is `auto`. Raises ValueError.

    The key `""` has the budget of all other devices.
    """
    budgets: dict[str, int | None] = {}
    for part in filter(None, (part.strip() for part in _BETWEEN_DEVICES.split(text))):
        device, has_device, size = part.rpartition("=")
        device = device.strip()
        if device in budgets or (has_device and not device):
            raise ValueError(f"{part!r} is the second size, or has no device: write cuda:0=20GiB,cpu=8GiB")
        budgets[device] = None if size.strip() == AUTO else parse_bytes(size)
    return budgets
