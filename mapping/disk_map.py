"""Map of bytes to bytes: in memory while it is small, then in a temporary SQLite database that spills to disk."""

from __future__ import annotations

import sqlite3
from typing import Final

_MAX_MEMORY: Final = 64 << 20
_ENTRY: Final = 160  # bytes of two small objects and their place in a dictionary


class DiskMap:
    """A map that is deleted with its object."""

    def __init__(self, max_memory: int = _MAX_MEMORY) -> None:
        self._entries: dict[bytes, bytes] = {}
        self._left = max_memory
        self._database: sqlite3.Connection | None = None

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key."""
        if self._database is not None:
            self._database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (key, value))
            return
        self._entries[key] = value
        self._left -= len(key) + len(value) + _ENTRY
        if self._left < 0:
            self._spill()

    def get(self, key: bytes) -> bytes | None:
        """Return a value."""
        if self._database is None:
            return self._entries.get(key)
        found = self._database.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def add(self, key: bytes, value: bytes = b"") -> bool:
        """Add a key that is new; return whether it is."""
        if self._database is not None:
            return self._database.execute("INSERT OR IGNORE INTO entries VALUES (?, ?)", (key, value)).rowcount == 1
        if key in self._entries:
            return False
        self.put(key, value)
        return True

    def close(self) -> None:
        """Delete the map."""
        if self._database is not None:
            self._database.close()

    def _spill(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # one thread after another
        for setting in ("cache_size = -65536", "journal_mode = OFF", "synchronous = OFF"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO entries VALUES (?, ?)", self._entries.items())
        self._entries.clear()
