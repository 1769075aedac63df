"""Isolation: a line that may end its worker runs with nothing beside it in the process.

Calls never block: a shard that may not begin a line asks again later.
"""

from __future__ import annotations

import threading
from collections import Counter


class Isolation:
    """The shards with lines that run in this process now, by name. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._exclusive: str | None = None
        self._waiting_exclusive: set[str] = set()

    def enter(self, name: str, *, exclusive: bool) -> bool:
        """May the shard begin a line? An exclusive one waits until no line runs; until its turn is over, nothing else enters."""
        with self._lock:
            if exclusive and not self._inside:
                self._exclusive = name
                self._waiting_exclusive.discard(name)
            elif exclusive:
                self._waiting_exclusive.add(name)
                return False
            elif self._exclusive is not None or self._waiting_exclusive:
                return False
            self._inside[name] += 1
            return True

    def leave(self, name: str) -> None:
        """Record that a line of the shard has ended."""
        with self._lock:
            self._inside[name] -= 1
            if not self._inside[name]:
                del self._inside[name]
                self._exclusive = None if self._exclusive == name else self._exclusive

    def remove(self, name: str) -> None:
        """Record that no line of the shard runs or waits for its turn."""
        with self._lock:
            del self._inside[name]
            self._waiting_exclusive.discard(name)
            self._exclusive = None if self._exclusive == name else self._exclusive
