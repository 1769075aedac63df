"""From tokens to text as it may be shown: whole characters only, and nothing that may still become a stop string.

Knows bytes and strings. What the deltas add up to is always the text as a whole would be.
"""

from __future__ import annotations

import codecs


class TextStream:
    """The text of one answer, piece by piece."""

    def __init__(self, stop: list[str]) -> None:
        self._stop = stop
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._held = ""
        self._shown: list[str] = []
        self.is_stopped = False

    @property
    def text(self) -> str:
        """Everything shown so far."""
        return "".join(self._shown)

    def push(self, piece: bytes) -> str:
        """Take the bytes of a token; returns what may be shown now. Sets `is_stopped` at a stop string."""
        return self._take(self._decode(piece))

    def finish(self) -> str:
        """No more tokens will come: show what was held back."""
        if self.is_stopped:
            return ""
        delta = self._take(self._decode(b"", True))
        if not self.is_stopped:
            delta += self._show(self._held)
            self._held = ""
        return delta

    def _take(self, text: str) -> str:
        if self.is_stopped:
            return ""
        self._held += text.replace("\0", "")  # Postgres and C strings cannot hold it
        if not self._stop:
            shown, self._held = self._held, ""
            return self._show(shown)
        found = [(at + len(word), at) for word in self._stop if (at := self._held.find(word)) >= 0]
        if found:  # the one that is complete first, so that it does not matter how text falls into tokens
            self.is_stopped = True
            shown, self._held = self._held[: min(found)[1]], ""
        else:
            keep = self._num_held_back()
            shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._show(shown)

    def _num_held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stop)) - 1)
        for length in range(longest, 0, -1):
            end = self._held[-length:]
            if any(word.startswith(end) for word in self._stop):
                return length
        return 0

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text
