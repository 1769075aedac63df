"""N-gram proposer: drafts the tokens that followed the last n tokens when these occurred before.

The next step computes a draft together with the sampled token and keeps it as far as the model agrees, so the generated text
does not change. Source: prompt lookup decoding (Saxena 2023). Each new token also shows whether a draft of it would have been
right, so that the rate of right ones is known before any draft is computed.
"""

from __future__ import annotations

from typing import Final

_NGRAM: Final = 3
_FIRST_RATE: Final = 0.5
_RATE_DECAY: Final = 0.8


class NgramProposer:
    """The n-grams of one growing token list, and the rate of its tokens that they foretell, where they do so."""

    def __init__(self, tokens: list[int], num_prompt_tokens: int) -> None:
        self._tokens = tokens
        self._num_prompt_tokens = num_prompt_tokens
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = _NGRAM
        self.rate = _FIRST_RATE

    def update(self) -> None:
        """Take in the tokens that are new: each ends an n-gram, and was foretold by the one before it or not."""
        tokens, ends = self._tokens, self._ends
        for end in range(self._num_indexed, len(tokens)):
            ngram = tuple(tokens[end - _NGRAM : end])
            earlier = ends.get(ngram)
            if earlier is not None and end >= self._num_prompt_tokens:
                self.rate = _RATE_DECAY * self.rate + (1 - _RATE_DECAY) * (tokens[earlier] == tokens[end])
            ends[ngram] = end
        self._num_indexed = max(self._num_indexed, len(tokens))

    def propose(self, max_tokens: int) -> list[int]:
        """Up to `max_tokens` tokens that followed the last n-gram before; none if it is new."""
        tokens = self._tokens
        if max_tokens <= 0 or len(tokens) < _NGRAM:
            return []
        start = self._ends.get(tuple(tokens[-_NGRAM:]))
        return [] if start is None else tokens[start : start + max_tokens]
