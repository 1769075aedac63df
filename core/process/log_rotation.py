"""Rotation of a log that a child process has open: the child writes on to the same file, so it is copied and then emptied."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

_NUM_OLD: Final = 3


class LogRotation:
    """Keeps a log below about `max_bytes`, and three old ones beside it as `.1` (the newest) to `.3`. 0 keeps all.

    A line that is written between the copy and the truncation, within microseconds, is lost. On a full disk the log grows on,
    and the next attempt comes after another `max_bytes`.
    """

    def __init__(self, log: Path, max_bytes: int) -> None:
        self._log = log
        self._max_bytes = max_bytes
        self._rotates_at = max_bytes

    def rotate_if_large(self) -> bool:
        """Rotate the log if it has its full size; returns whether that was done."""
        with suppress(OSError):
            size = self._log.stat().st_size
            if self._max_bytes and size >= self._rotates_at:
                self._rotates_at = size + self._max_bytes
                self._rotate()
                self._rotates_at = self._max_bytes
                return True
        return False

    def _rotate(self) -> None:
        for number in range(_NUM_OLD - 1, 0, -1):
            with suppress(FileNotFoundError):
                self._old(number).replace(self._old(number + 1))
        part = self._log.with_name(self._log.name + ".part")
        try:
            with self._log.open("r+b") as source, part.open("wb") as target:
                while source.tell() < self._log.stat().st_size:  # lines that arrive during the copy are copied too
                    shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                source.truncate(0)
            part.replace(self._old(1))
        finally:
            part.unlink(missing_ok=True)

    def _old(self, number: int) -> Path:
        return self._log.with_name(f"{self._log.name}.{number}")
