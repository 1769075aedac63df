"""From tokens to text as it may be shown: whole characters only, and nothing that may still become a stop string.

Knows bytes and strings. What the deltas add up to is always the text as a whole would be.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


class IncrementalDetokenizer:
    """The text of one answer, piece by piece: `decode` makes characters of bytes, `show` looks for stop strings."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
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
        return self.show(self.decode(piece))

    def decode(self, piece: bytes, *, is_last: bool = False) -> str:
        """The characters that are complete with these bytes; half of one waits for the rest unless they are the last."""
        text = self._decode(piece, is_last)
        return text.replace("\0", "") if "\0" in text else text  # Postgres and C strings cannot hold it

    def show(self, text: str) -> str:
        """Take some text; returns what may be shown now."""
        if self.is_stopped or not text:
            return ""
        if not self._stop:
            self._shown.append(text)
            return text
        self._held += text
        found = [(at + len(word), at) for word in self._stop if (at := self._held.find(word)) >= 0]
        if found:  # the one that is complete first, so that it does not matter how text falls into tokens
            self.is_stopped = True
            return self._release(min(found)[1], held=0)
        return self._release(len(self._held), held=overlap(self._held, self._stop))

    def finish(self) -> str:
        """No more tokens will come: show what was held back."""
        delta = self.show(self.decode(b"", is_last=True))
        return delta if self.is_stopped else delta + self._release(len(self._held), held=0)

    def _release(self, end: int, *, held: int) -> str:
        """Show what is held, up to `end`, but for its last `held` characters; what is beyond `end` is dropped."""
        shown, self._held = self._held[: end - held], self._held[end - held : end]
        if shown:
            self._shown.append(shown)
        return shown


def overlap(text: str, words: Iterable[str]) -> int:
    """Length of the longest end of `text` that begins one of the words and is not the whole of it."""
    longest = 0
    for word in words:
        at = text.find(word[0], max(0, len(text) - len(word) + 1))
        while at >= 0 and not word.startswith(text[at:]):
            at = text.find(word[0], at + 1)
        if at >= 0:
            longest = max(longest, len(text) - at)
    return longest
