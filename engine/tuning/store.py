"""The file of a tuning, in the state of a deployment: written by the engine that measured, read before the next load.

Beside it lies a file while a search runs. A search needs memory of the device, and may end the process where that is short: after
some processes that ended in mid-search, the model is served without one for a day.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from engine.config import Tuning

_MOST_DEATHS: Final = 3
_MOST_SLOTS: Final = 256
_MOST_TOKENS: Final = 65_536  # of a step
_FORGOTTEN_SECONDS: Final = 86_400.0


def read_tuning(path: Path) -> Tuning | None:
    """The tuning in a file; None where there is none, one of another version, or one with numbers that nothing measured."""
    try:
        tuning = msgspec.json.decode(path.read_bytes(), type=Tuning)
    except (OSError, msgspec.MsgspecError):
        return None
    measured = [*tuning.row_seconds, *tuning.prompt_seconds]
    is_sound = 1 <= tuning.slots <= _MOST_SLOTS and 1 <= tuning.ubatch_tokens <= _MOST_TOKENS
    return tuning if is_sound and all(size > 0 and seconds > 0 for size, seconds in measured) else None


def write_tuning(path: Path, tuning: Tuning) -> None:
    """Write a tuning, whole or not at all. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(tuning), indent=1))
    part.replace(path)


class Attempts:
    """The searches for the tuning of a file whose processes ended meanwhile: a byte for each."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path.with_suffix(".measuring")
        self._clock = clock

    @property
    def are_too_many(self) -> bool:
        """Have so many processes ended while they measured that no other should?"""
        try:
            status = self._path.stat()
        except OSError:
            return False
        return status.st_size >= _MOST_DEATHS and self._clock() - status.st_mtime < _FORGOTTEN_SECONDS

    def begin(self) -> None:
        """Note that a search begins. Raises OSError."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._path.open("ab") as stream:
            stream.write(b".")

    def end(self) -> None:
        """Note that a search has ended, and its process has not."""
        with suppress(OSError):
            self._path.unlink()
