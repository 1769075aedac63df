"""Layout choice: should slots share one memory, or have a stream each? It depends on what the next prompts have in common.

A shared memory holds a common start once, and computes the ends of all prompts as one piece; but each token walks past the
cells of all slots. So it is for prompts that all begin alike:

    shared   ■■■■■■■■ 1 2 3 4          a start of 8 cells once, and the ends of 4 prompts: 12 cells
    streams  ■■■■■■■■ 1                the start in each stream: 9 cells for each prompt
             ■■■■■■■■ 2 …
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Ordered
from itertools import islice, pairwise
from typing import Final

from engine.scheduler.prefix_index import common_prefix
from engine.scheduler.sequence import Sequence
from engine.types import Priority

# The share of tokens that a prompt and its answer do not have in common with the prompt before.
_MOST_FOR_SHARED: Final = 0.25
_LEAST_FOR_SPLIT: Final = 0.4
_FEW_STARTS: Final = 2  # as where one group of lines follows another
_USUAL_ANSWER: Final = 128
_ROUNDS_BETWEEN: Final = 8  # of as many sequences as slots, between two changes: each loses what is computed


class LayoutChoice:
    """Decides when an engine changes its layout, by the sequences that it gets."""

    def __init__(self) -> None:
        self._num_added = 0  # since the last decision
        self._num_chats = 0  # since the last sequence of a batch
        self._rounds = 1

    def add(self, sequence: Sequence) -> None:
        """Count a sequence."""
        self._num_added += 1
        self._num_chats = self._num_chats + 1 if sequence.priority is Priority.CHAT else 0

    def is_due(self, running: Ordered[Sequence], waiting: Iterable[Sequence], *, slots: int, is_split: bool) -> bool:
        """Is the other layout better for what runs and waits?

        Streams are better for chats alone, which pass no idle histories there; but none of them waits for the change.
        """
        following = [*running, *islice(waiting, 2 * slots)]
        if not following:
            return not is_split and self._num_chats >= slots
        if self._num_added < self._rounds * slots or len(following) < slots:
            return False
        self._num_added, self._rounds = 0, 1
        wants_split = is_split_better(following)
        if wants_split in (None, is_split):
            return False
        self._rounds = _ROUNDS_BETWEEN
        return True


def is_split_better(sequences: Ordered[Sequence]) -> bool | None:
    """Are streams faster for sequences that run in this order? None if it makes little difference."""
    common = [_common_tokens(*pair) for pair in pairwise(sequences)]
    num_starts = 1 + sum(
        2 * tokens < sequence.num_prompt_tokens for tokens, sequence in zip(common, sequences[1:], strict=True)
    )
    tokens = sum(sequence.num_prompt_tokens + _answer_tokens(sequence) for sequence in sequences)
    own = (tokens - sum(common)) / tokens
    if num_starts == 1 and own <= _MOST_FOR_SHARED:
        return False
    return True if num_starts > _FEW_STARTS or own >= _LEAST_FOR_SPLIT else None


def _common_tokens(one: Sequence, other: Sequence) -> int:
    if one.tenant != other.tenant:
        return 0
    return common_prefix(one.tokens, other.tokens, min(one.num_prompt_tokens, other.num_prompt_tokens))


def _answer_tokens(sequence: Sequence) -> int:
    """Tokens that an answer may take, as far as that is known."""
    return _USUAL_ANSWER if sequence.max_tokens is None else min(sequence.max_tokens, _USUAL_ANSWER)
