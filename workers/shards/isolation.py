"""Isolation: a line that may take its worker down runs with nothing beside it in the process.

Knows names of those who run lines; nothing of lines. Nobody waits here: who may not enter asks again later.
"""

from __future__ import annotations

import threading
from collections import Counter


class Isolation:
    """Whose lines run in this process now. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._alone: str | None = None
        self._wants_to_be_alone: set[str] = set()

    def enter(self, name: str, *, alone: bool) -> bool:
        """May a line begin? With `alone`: with nothing beside it. Then nobody else enters before it has had its turn."""
        with self._lock:
            if alone and not self._inside:
                self._alone = name
                self._wants_to_be_alone.discard(name)
            elif alone:
                self._wants_to_be_alone.add(name)
                return False
            elif self._alone is not None or self._wants_to_be_alone:
                return False
            self._inside[name] += 1
            return True

    def leave(self, name: str) -> None:
        """A line has ended."""
        with self._lock:
            self._inside[name] -= 1
            if not self._inside[name]:
                del self._inside[name]
                self._alone = None if self._alone == name else self._alone

    def forget(self, name: str) -> None:
        """None of its lines runs, and none wants to."""
        with self._lock:
            del self._inside[name]
            self._wants_to_be_alone.discard(name)
            self._alone = None if self._alone == name else self._alone
