"""One line that follows a compilation: rewritten on a terminal, printed every tenth of the way in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TextIO

_TENTHS: Final = 10
_ERASE: Final = "\r\x1b[K"


class Progress:
    """The progress of `name` on a stream, with the time since it was made."""

    def __init__(self, name: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._stream, self._clock = name, stream, clock
        self._began = clock()
        self._is_terminal = stream.isatty()
        self._shown, self._total = -1, 0

    def note(self, text: str) -> None:
        """Show, on a terminal only, the state before the first file."""
        if self._is_terminal:
            self._write(f"{_ERASE}  {self._name}: {text} … {self._elapsed()}")

    def show(self, done: int, total: int) -> None:
        """Show `done` of `total` files; ignore smaller totals, which are of a build inside the build."""
        if total < self._total:
            return
        if total > self._total:
            self._shown, self._total = -1, total
        text = f"  {self._name}: {100 * done // total:3} %, {done} of {total} files, {self._elapsed()}"
        tenth = _TENTHS * done // total
        if self._is_terminal:
            self._write(_ERASE + text)
        elif tenth > self._shown:
            self._write(text + "\n")
        self._shown = max(self._shown, tenth)

    def close(self, text: str) -> None:
        """End the line with a result."""
        self._write(f"{_ERASE if self._is_terminal else ''}  {self._name}: {text} in {self._elapsed()}\n")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(self._clock() - self._began), 60)
        return f"{minutes}:{seconds:02}"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
