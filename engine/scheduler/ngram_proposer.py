"""N-gram proposer: drafts the tokens that followed the last n tokens when these occurred before.

The next step computes a draft together with the sampled token and keeps it as far as the model agrees, so the generated text
does not change. Source: prompt lookup decoding (Saxena 2023).
"""

from __future__ import annotations

from typing import Final

_NGRAM: Final = 3
_MIN_ACCEPT_RATE: Final = 0.3
_RATE_DECAY: Final = 0.8
_RETRY_EVERY: Final = 16


class NgramProposer:
    """The n-grams of one growing token list, and the acceptance rate of its drafts."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0
        self._rate = 1.0
        self._num_proposed = 0
        self._num_skipped = 0

    def propose(self, max_tokens: int) -> list[int]:
        """Up to `max_tokens` tokens that followed the last n-gram before; none if it is new or if drafts are mostly wrong."""
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
        """Record how many tokens of the last proposal were accepted."""
        if self._num_proposed:
            self._rate = _RATE_DECAY * self._rate + (1 - _RATE_DECAY) * num_accepted / self._num_proposed
            self._num_proposed = 0

    def _is_worth_it(self) -> bool:
        """Was the acceptance rate high enough? If not, one proposal in `_RETRY_EVERY` is still made."""
        if self._rate >= _MIN_ACCEPT_RATE:
            return True
        self._num_skipped += 1
        return self._num_skipped % _RETRY_EVERY == 0

    def _index(self) -> None:
        """Index the most recent end of each n-gram, except the last one."""
        for end in range(max(self._num_indexed, _NGRAM), len(self._tokens)):
            self._ends[tuple(self._tokens[end - _NGRAM : end])] = end
        self._num_indexed = len(self._tokens)
