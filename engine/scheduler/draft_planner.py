"""Draft planner: decides how many draft tokens each decoding sequence computes in a step, by what they cost and bring.

A sequence that decodes alone leaves a GPU idle, and a CPU computes 16 rows in the time of 5 separate ones. So what pays differs
from device to device. The cost of a step by its rows is measured; the rate r of right drafts is that of the sequence so far. k
drafts bring 1 + r + … + r^k tokens:

    drafts pay if  tokens / seconds(rows with drafts)  >  sequences / seconds(rows without)

Split memory computes streams of unequal length in one pass for each length, so either all sequences get k drafts, or those that
do are computed once more.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from engine.scheduler.ngram_proposer import NgramProposer
from engine.scheduler.sequence import Sequence
from engine.scheduler.step_cost import StepCost, StepSize

_LENGTHS: Final = (1, 2, 4, 8, 15)
_MOST_SEQUENCES: Final = 8
_MOST_ROWS: Final = 24  # of drafts in a step; the buffer for logits has EXTRA_ROWS
_GAIN: Final = 1.1  # by which drafts must be faster, since rates and costs are not exact
_LOWEST_RATE: Final = 0.3
_ALWAYS_LENGTH: Final = 4
_ALWAYS_SEQUENCES: Final = 2


class _Candidate(NamedTuple):
    sequence: Sequence
    rate: float
    drafts: list[int]


class DraftPlanner:
    """The drafts of one engine, at most `most_rows` in a step: with `is_always` some wherever one or two sequences decode.

    `most_rows` is what a step has room for where each sequence computes one token.
    """

    def __init__(
        self,
        cost: StepCost,
        *,
        context_size: int,
        max_drafts: int,
        most_rows: int,
        is_always: bool,
        is_split: bool,
    ) -> None:
        self._cost = cost
        self._context_size = context_size
        self._max_drafts = max_drafts
        self._room = most_rows
        self._is_always = is_always
        self._is_split = is_split
        self._proposers: dict[Sequence, NgramProposer] = {}

    def discard(self, sequence: Sequence) -> None:
        """Drop the state of a finished sequence."""
        self._proposers.pop(sequence, None)

    def plan(self, decoding: list[Sequence], max_forced: int = 1) -> dict[Sequence, list[int]]:
        """Drafts for a step that computes these sequences and nothing else; those that get none are absent.

        `max_forced`: the tokens that a sequence computes at most beside its drafts.
        """
        number = len(decoding)
        if not self._max_drafts or not self._may_pay(number):
            return {}
        forced = sum(min(max_forced, sequence.num_uncomputed) - 1 for sequence in decoding)
        most_rows = min(_MOST_ROWS, self._room - forced)
        candidates = [each for sequence in decoding if (each := self._candidate(sequence)) is not None]
        candidates.sort(key=lambda each: -each.rate)
        if self._is_always:
            length = min(_ALWAYS_LENGTH, most_rows // number)
            return {each.sequence: each.drafts[:length] for each in candidates if length > 0}
        best, chosen = number / self._seconds(number, 0, 0) * _GAIN, None
        for length in _LENGTHS:
            able = [each for each in candidates if len(each.drafts) >= length]
            tokens = float(number)
            for count, each in enumerate(able, 1):
                if count * length > most_rows:
                    break
                tokens += sum(each.rate**power for power in range(1, length + 1))
                speed = tokens / self._seconds(number, count, length)
                if speed > best:
                    best, chosen = speed, (length, able[:count])
        if chosen is None:
            return {}
        length, able = chosen
        return {each.sequence: each.drafts[:length] for each in able}

    def _may_pay(self, number: int) -> bool:
        """Would drafts pay if all were right?"""
        if self._is_always:
            return 0 < number <= _ALWAYS_SEQUENCES
        if not 0 < number <= _MOST_SEQUENCES:
            return False
        plain = self._seconds(number, 0, 0)
        least = _GAIN * number / plain
        return math.isfinite(plain) and any(
            number * (1 + length) / self._seconds(number, number, length) > least
            for length in _LENGTHS
            if number * length <= min(_MOST_ROWS, self._room)
        )

    def _candidate(self, sequence: Sequence) -> _Candidate | None:
        """The most drafts of a sequence, and the rate of right ones; None if it is low, or where none may be made."""
        if sequence.constraint is not None or sequence.num_uncomputed != 1:
            return None
        proposer = self._proposers.get(sequence)
        if proposer is None:
            proposer = self._proposers[sequence] = NgramProposer(sequence.tokens, sequence.num_prompt_tokens)
        proposer.update()
        if proposer.rate < _LOWEST_RATE:
            return None
        room = self._context_size - (len(sequence.tokens) - sequence.num_shifted) - 1
        if sequence.max_tokens is not None:
            room = min(room, sequence.max_tokens - sequence.num_generated - 1)
        drafts = proposer.propose(min(self._max_drafts, room))
        return _Candidate(sequence, proposer.rate, drafts) if drafts else None

    def _seconds(self, number: int, count: int, length: int) -> float:
        """Seconds of a step of `number` sequences, of which `count` have `length` drafts; infinity if unknown."""
        rows = number + count * length
        if not self._cost.knows(StepSize(rows)):
            return math.inf
        passes = [number, count * length] if self._is_split and 0 < count < number else [rows]
        return sum(self._cost.seconds(StepSize(size)) for size in passes) or math.inf
