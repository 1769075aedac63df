"""Prompt lookup: guess that a text goes on as it did when its last tokens stood there before.

Knows token ids. A guess costs nothing but the room of a few more tokens in a step that has room; whether it is right is
found out by computing it, so what is generated does not change. Source of the idea: prompt lookup decoding (Saxena 2023).
"""

from __future__ import annotations

from typing import Final

_NGRAM: Final = 3
_LEAST_RATE: Final = 0.3
_MEMORY: Final = 0.8
_RETRY_EVERY: Final = 16


class NgramProposer:
    """The n-grams of one growing token list, and how good guesses from it have been."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0
        self._rate = 1.0
        self._num_proposed = 0
        self._num_silent = 0

    def propose(self, most: int) -> list[int]:
        """At most `most` tokens that followed the last time; none when it never stood there or guessing does not pay."""
        self._num_proposed = 0
        tokens = self._tokens
        if most <= 0 or len(tokens) < _NGRAM or not self._is_worth_it():
            return []
        self._index()
        at = self._ends.get(tuple(tokens[-_NGRAM:]))
        if at is None:
            return []
        drafts = tokens[at : at + most]
        self._num_proposed = len(drafts)
        return drafts

    def judge(self, num_accepted: int) -> None:
        """How many of the last proposal were right."""
        if self._num_proposed:
            self._rate = _MEMORY * self._rate + (1 - _MEMORY) * num_accepted / self._num_proposed
            self._num_proposed = 0

    def _is_worth_it(self) -> bool:
        """Where guesses were mostly wrong, only one in a while is made."""
        if self._rate >= _LEAST_RATE:
            return True
        self._num_silent += 1
        return self._num_silent % _RETRY_EVERY == 0

    def _index(self) -> None:
        """Note where each n-gram but the last one ended most recently."""
        for end in range(max(self._num_indexed, _NGRAM), len(self._tokens)):
            self._ends[tuple(self._tokens[end - _NGRAM : end])] = end
        self._num_indexed = len(self._tokens)
