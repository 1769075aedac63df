"""Counters of this process, which `workers.heartbeat` writes to the database."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from core.counters import CounterName

Totals = Mapping[tuple[str, str], int]  # by name and model


class Counters:
    """Counts events by name and model; any thread may add."""

    def __init__(self) -> None:
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, count: CounterName, model: str = "", number: int = 1) -> None:
        """Add to one counter."""
        with self._lock:
            self._numbers[count, model] += number

    def totals(self) -> dict[tuple[str, str], int]:
        """All counts since the process started."""
        with self._lock:
            return dict(self._numbers)
