"""Step builder: chooses the tokens of a step, those of all decoding sequences and prompt chunks under a budget.

A step has at most `batch_tokens`, of which `prefill_tokens` belong to prompts. Each decoding sequence has its share of
`batch_tokens`, so that the forced tokens and drafts of all of them always fit.
"""

from __future__ import annotations

from typing import Final

from engine.config import PROMPT_LOGPROB_ROWS
from engine.scheduler.kv_cache import slot_of
from engine.scheduler.ngram_proposer import NgramProposer
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import StepEntry
from engine.scheduler.step_order import order_entries
from engine.types import Priority

# While a chat decodes, a step has this part of its usual prompt tokens.
INTERACTIVE_DIVISOR: Final = 4
_MAX_FORCED: Final = 64
_MAX_SPECULATING: Final = 2


class StepBuilder:
    """Builds the entries of steps with at most `slots` sequences."""

    def __init__(
        self, *, slots: int, context_size: int, batch_tokens: int, prefill_tokens: int, max_drafts: int
    ) -> None:
        assert batch_tokens >= slots, "every slot must be able to decode in one step"
        self._context_size = context_size
        self._batch_tokens = batch_tokens
        self._prefill_tokens = prefill_tokens
        share = batch_tokens // slots if slots else 1
        self._max_forced = min(_MAX_FORCED, share)
        self._max_drafts = min(max_drafts, share - 1)
        self._proposers: dict[Sequence, NgramProposer] = {}

    def build(self, running: list[Sequence]) -> list[StepEntry]:
        """Return the entries, in the order in which split memory computes them in the fewest passes."""
        decoding = [sequence for sequence in running if not sequence.is_prefilling]
        entries = [self._decode(sequence, len(decoding)) for sequence in decoding]
        budget = self._batch_tokens - sum(len(entry.tokens) for entry in entries)
        prefilling = [sequence for sequence in running if sequence.is_prefilling]
        entries += self._prefill_all(prefilling, min(budget, self._prefill_budget(decoding)))
        return order_entries(entries)

    def record_accepted(self, sequence: Sequence, num_accepted: int) -> None:
        """Record how many drafts of the last step were accepted."""
        if (proposer := self._proposers.get(sequence)) is not None:
            proposer.record_accepted(num_accepted)

    def discard(self, sequence: Sequence) -> None:
        """Drop the drafting state of a finished sequence."""
        self._proposers.pop(sequence, None)

    def _decode(self, sequence: Sequence, num_decoding: int) -> StepEntry:
        start = sequence.num_computed
        tokens = sequence.tokens[start : start + self._max_forced]
        is_last = start + len(tokens) == len(sequence.tokens)
        drafts = (
            self._propose_drafts(sequence) if is_last and num_decoding <= _MAX_SPECULATING and len(tokens) == 1 else []
        )
        rows = 1 + len(drafts) if is_last else 0
        return StepEntry(sequence, slot_of(sequence), start - sequence.num_shifted, tokens + drafts, rows, len(drafts))

    def _propose_drafts(self, sequence: Sequence) -> list[int]:
        """Draft tokens for a sequence that decodes (nearly) alone and so leaves the device idle."""
        if not self._max_drafts or sequence.constraint is not None:
            return []
        proposer = self._proposers.get(sequence)
        if proposer is None:
            proposer = self._proposers[sequence] = NgramProposer(sequence.tokens)
        room = self._context_size - (len(sequence.tokens) - sequence.num_shifted) - 1
        if sequence.max_tokens is not None:
            room = min(room, sequence.max_tokens - sequence.num_generated - 1)
        return proposer.propose(min(self._max_drafts, room))

    def _prefill_budget(self, decoding: list[Sequence]) -> int:
        """Prompt tokens of a step: fewer while a chat decodes, since its tokens wait for the step to end."""
        if any(sequence.priority is Priority.CHAT for sequence in decoding):
            return max(1, self._prefill_tokens // INTERACTIVE_DIVISOR)
        return self._prefill_tokens

    def _prefill_all(self, prefilling: list[Sequence], budget: int) -> list[StepEntry]:
        """Prompt chunks in order of admission: only those of chat while there is any."""
        chat = [sequence for sequence in prefilling if sequence.priority is Priority.CHAT]
        entries: list[StepEntry] = []
        for sequence in sorted(chat or prefilling, key=lambda sequence: sequence.admission):
            if budget <= 0:
                break
            if sequence.wants_prompt_logprobs and any(entry.wants_prompt_logprobs for entry in entries):
                continue  # rows are expensive: one such prompt per step
            entry = self._prefill(
                sequence, min(budget, PROMPT_LOGPROB_ROWS) if sequence.wants_prompt_logprobs else budget
            )
            entries.append(entry)
            budget -= len(entry.tokens)
        return entries

    def _prefill(self, sequence: Sequence, budget: int) -> StepEntry:
        start, end = sequence.num_computed, len(sequence.tokens)
        if sequence.snapshot is not None and start < sequence.snapshot.length:
            end = min(end, sequence.snapshot.latest)
        tokens = sequence.tokens[start : min(end, start + budget)]
        rows = len(tokens) if sequence.wants_prompt_logprobs else int(start + len(tokens) == len(sequence.tokens))
        position = start - sequence.num_shifted
        return StepEntry(
            sequence, slot_of(sequence), position, tokens, rows, wants_prompt_logprobs=sequence.wants_prompt_logprobs
        )
