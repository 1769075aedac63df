"""Detokenizer: convert token bytes to whole characters, and hold back text that may still become a stop string.

The deltas always add up to the text that results from all bytes at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


class IncrementalDetokenizer:
    """Builds the text of one answer: `decode` converts bytes to characters, `show` searches for stop strings."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._held = ""
        self._shown: list[str] = []
        self.is_stopped = False

    @property
    def text(self) -> str:
        """All text shown so far."""
        return "".join(self._shown)

    def push(self, piece: bytes) -> str:
        """Add the bytes of a token and return the text to show. Sets `is_stopped` at a stop string."""
        return self.show(self.decode(piece))

    def decode(self, piece: bytes, *, is_last: bool = False) -> str:
        """Return the characters that these bytes complete. An incomplete character waits for its rest, unless `is_last`."""
        return _without_nul(self._decode(piece, is_last))

    def show(self, text: str) -> str:
        """Add text and return the part to show now."""
        if self.is_stopped or not text:
            return ""
        if not self._stop:
            self._shown.append(text)
            return text
        self._held += text
        found = [(at + len(word), at) for word in self._stop if (at := self._held.find(word)) >= 0]
        if found:  # the first to be complete wins, so that token boundaries make no difference
            self.is_stopped = True
            return self._release(min(found)[1], held=0)
        return self._release(len(self._held), held=overlap(self._held, self._stop))

    def finish(self) -> str:
        """End the answer and return the text that was held back."""
        delta = self.show(self.decode(b"", is_last=True))
        return delta if self.is_stopped else delta + self._release(len(self._held), held=0)

    def _release(self, end: int, *, held: int) -> str:
        """Show the held text before `end`, except its last `held` characters; drop the text behind `end`."""
        shown, self._held = self._held[: end - held], self._held[end - held : end]
        if shown:
            self._shown.append(shown)
        return shown


def plain_text(pieces: bytes) -> str:
    """Return the text of a whole answer without stop strings."""
    return _without_nul(pieces.decode(errors="replace"))


def _without_nul(text: str) -> str:
    return text.replace("\0", "") if "\0" in text else text  # Postgres and C strings cannot store it


def overlap(text: str, words: Iterable[str]) -> int:
    """Return the length of the longest end of `text` that is a proper prefix of one of the words."""
    longest = 0
    for word in words:
        at = text.find(word[0], max(0, len(text) - len(word) + 1))
        while at >= 0 and not word.startswith(text[at:]):
            at = text.find(word[0], at + 1)
        if at >= 0:
            longest = max(longest, len(text) - at)
    return longest
