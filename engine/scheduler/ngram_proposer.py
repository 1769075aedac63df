"""Prompt proposer: guess that a text goes on as it did when its last tokens stood there before.

Knows token ids. A guess costs nothing but the room of a few more tokens in a step that has room; whether it is right is
found out by computing it, so what is generated does not change. Source of the idea: prompt proposer decoding (Saxena 2023).
"""

from __future__ import annotations

from typing import Final

_NGRAM: Final = 3
_MIN_ACCEPT_RATE: Final = 0.3
_RATE_DECAY: Final = 0.8
_RETRY_EVERY: Final = 16


class NgramProposer:
    """The n-grams of one growing token list, and how good guesses from it have been."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0
        self._rate = 1.0
        self._num_proposed = 0
        self._num_skipped = 0

    def propose(self, max_tokens: int) -> list[int]:
        """At most `max_tokens` tokens that followed the last time; none when it never stood there or guessing does not pay."""
        self._num_proposed = 0
        tokens = self._tokens
        if max_tokens <= 0 or len(tokens) < _NGRAM or not self._is_worth_it():
            return []
        self._index()
        start = self._ends.get(tuple(tokens[-_NGRAM:]))
        if start is None:
            return []
        drafts = tokens[start : start + max_tokens]
        self._num_proposed = len(drafts)
        return drafts

    def record_accepted(self, num_accepted: int) -> None:
        """How many of the last proposal were right."""
        if self._num_proposed:
            self._rate = _RATE_DECAY * self._rate + (1 - _RATE_DECAY) * num_accepted / self._num_proposed
            self._num_proposed = 0

    def _is_worth_it(self) -> bool:
        """Where guesses were mostly wrong, only one in a while is made."""
        if self._rate >= _MIN_ACCEPT_RATE:
            return True
        self._num_skipped += 1
        return self._num_skipped % _RETRY_EVERY == 0

    def _index(self) -> None:
        """Note where each n-gram but the last one ended most recently."""
        for end in range(max(self._num_indexed, _NGRAM), len(self._tokens)):
            self._ends[tuple(self._tokens[end - _NGRAM : end])] = end
        self._num_indexed = len(self._tokens)
