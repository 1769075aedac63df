"""Plain numbers of this process, counted where things happen; `workers.heartbeat` tells them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from core.counters import CounterName

Totals = Mapping[tuple[str, str], int]  # by name and model


class Counters:
    """May be raised from any thread."""

    def __init__(self) -> None:
        self._numbers: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, count: CounterName, model: str = "", number: int = 1) -> None:
        """So many more."""
        with self._lock:
            self._numbers[count, model] += number

    def totals(self) -> dict[tuple[str, str], int]:
        """Everything since the process started."""
        with self._lock:
            return dict(self._numbers)
