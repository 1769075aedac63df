"""Step builder: chooses the tokens of a step, those of all decoding sequences and prompt chunks under a budget.

A step has at most `batch_tokens`, of which `prefill_tokens` belong to prompts. Each decoding sequence has its share of
`batch_tokens`, so that the forced tokens and drafts of all of them always fit.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Final

from engine.config import EXTRA_ROWS
from engine.scheduler.chat_share import INTERACTIVE_DIVISOR, STALL_SECONDS, ChatShare
from engine.scheduler.draft_planner import DraftPlanner
from engine.scheduler.kv_cache import slot_of
from engine.scheduler.sequence import Sequence
from engine.scheduler.step import StepEntry
from engine.scheduler.step_cost import StepSize, size_of
from engine.scheduler.step_order import order_entries
from engine.types import Priority

_MIN_CHUNK: Final = 16
_MIN_BATCH_CHUNK: Final = 128  # attention is computed in tiles from 64 tokens on
_MAX_FORCED: Final = 64
_NO_DRAFTS: Final[dict[Sequence, list[int]]] = {}
_NO_TOKENS: Final[list[int]] = []


class StepBuilder:
    """Builds the entries of steps with at most `slots` sequences."""

    def __init__(
        self,
        share: ChatShare,
        *,
        slots: int,
        batch_tokens: int,
        prefill_tokens: int,
        drafts: DraftPlanner,
    ) -> None:
        assert batch_tokens >= slots, "every slot must be able to decode in one step"
        self._share = share
        self._batch_tokens = batch_tokens
        self._prefill_tokens = prefill_tokens
        most = batch_tokens // slots if slots else 1
        self._max_forced = min(_MAX_FORCED, most)
        self._drafts = drafts
        self._prompts_next = False
        self._last_slot = -1

    def build(
        self, running: list[Sequence], *, urgent: Set[Sequence] = frozenset(), beside_chat: bool = False
    ) -> list[StepEntry]:
        """Return the entries, in the order in which split memory computes them in the fewest passes.

        The `urgent` ones count as chat. With `beside_chat` a chat runs that is not in this step; then there may be no entries.
        """
        chat = [sequence for sequence in running if sequence.priority is Priority.CHAT or sequence in urgent]
        if not (chat or beside_chat):
            return order_entries(self._compute(running, len(running), self._batch_prompt_tokens, self._batch_tokens))
        batch = [sequence for sequence in running if sequence not in chat]
        room = self._batch_tokens - sum(map(self._most_decoded, batch))
        entries = self._compute(chat, len(running), lambda: self._interactive_tokens(chat), room)
        if batch:
            entries += self._compute_beside(entries, batch)
        return order_entries(entries)

    def _decode(self, sequence: Sequence, drafts: dict[Sequence, list[int]] = _NO_DRAFTS) -> StepEntry:
        start = sequence.num_computed
        tokens = sequence.tokens[start : start + self._max_forced]
        is_last = start + len(tokens) == len(sequence.tokens)
        slot, position = slot_of(sequence), start - sequence.num_shifted
        drafted = drafts.get(sequence, _NO_TOKENS) if drafts else _NO_TOKENS
        if not drafted:
            return StepEntry(sequence, slot, position, tokens, int(is_last))
        return StepEntry(sequence, slot, position, tokens + drafted, 1 + len(drafted) if is_last else 0, len(drafted))

    def _compute(
        self, sequences: list[Sequence], num_running: int, prompt_tokens: Callable[[], int], room: int
    ) -> list[StepEntry]:
        """Entries of all that decode, and chunks of at most so many prompt tokens; `room` is for both."""
        prefilling = [sequence for sequence in sequences if sequence.is_prefilling]
        decoding = [sequence for sequence in sequences if not sequence.is_prefilling] if prefilling else sequences
        drafts = self._drafts.plan(decoding, self._max_forced) if len(decoding) == num_running else _NO_DRAFTS
        entries = [self._decode(sequence, drafts) for sequence in decoding]
        if prefilling:
            entries += self._prefill_all(prefilling, min(prompt_tokens(), room - _num_tokens(entries)))
        return entries

    def _most_decoded(self, sequence: Sequence) -> int:
        """Tokens that a sequence may add to a step if it decodes."""
        forced = min(self._max_forced, sequence.num_uncomputed)
        return 0 if sequence.is_prefilling else max(forced, 1)

    def _compute_beside(self, chat: list[StepEntry], batch: list[Sequence]) -> list[StepEntry]:
        """Entries of a batch beside those of chat; none while chat has not earned them.

        Decoding and prompts take turns if both together take too long for one step.
        """
        size = size_of(chat)
        decoding = [sequence for sequence in batch if not sequence.is_prefilling]
        prefilling = [sequence for sequence in batch if sequence.is_prefilling]
        if not self._share.cost.is_measured and any(entry.sequence.is_prefilling for entry in chat):
            prefilling = []  # the first token of a chat comes before prompts that may take long
        entries = [] if prefilling and self._prompts_next else self._decode_some(size, decoding)
        prompts: list[StepEntry] = []
        if prefilling:
            seconds = self._share.stall_seconds(size) - self._share.added_seconds(size, size_of(entries))
            budget = min(self._prompt_tokens_within(seconds), self._batch_tokens - _num_tokens([*chat, *entries]))
            if budget >= _MIN_CHUNK or not entries:
                has_scored = any(entry.wants_prompt_logprobs for entry in chat)
                prompts = self._prefill_all(prefilling, budget, has_scored=has_scored)
        if not self._share.allows(size, size_of([*entries, *prompts])):
            return []
        self._prompts_next = bool(prefilling) and not prompts
        self._last_slot = entries[-1].slot if entries else self._last_slot
        return entries + prompts

    def _decode_some(self, chat: StepSize, decoding: list[Sequence]) -> list[StepEntry]:
        """Entries of all that decode, or of as many neighbouring slots as fit beside chat, in turns."""
        limit = self._share.stall_seconds(chat)
        entries = [self._decode(sequence) for sequence in decoding]
        if self._share.added_seconds(chat, size_of(entries)) <= limit:
            return entries
        entries.sort(key=lambda entry: (entry.slot <= self._last_slot, entry.slot))
        number, size = 1, size_of(entries[:1])
        for entry in entries[1:]:
            size = size.plus(size_of([entry]))
            if self._share.added_seconds(chat, size) > limit:
                break
            number += 1
        return entries[:number]

    def _batch_prompt_tokens(self) -> int:
        """Prompt tokens of a step of a batch alone: a chat that comes waits for its end."""
        found = self._share.cost.tokens_within(STALL_SECONDS, self._prefill_tokens)
        return self._prefill_tokens if found is None else min(self._prefill_tokens, max(_MIN_BATCH_CHUNK, found))

    def _interactive_tokens(self, chat: list[Sequence]) -> int:
        """Prompt tokens of chat in a step: fewer while another chat decodes, since its tokens wait for the step to end."""
        decoding = [sequence for sequence in chat if not sequence.is_prefilling]
        return self._prompt_tokens_within(STALL_SECONDS) if decoding else self._prefill_tokens

    def _prompt_tokens_within(self, seconds: float) -> int:
        """Prompt tokens that take no longer, at least a small chunk; while no prompt was measured, a quarter of the usual."""
        found = self._share.cost.tokens_within(seconds, self._prefill_tokens)
        return max(1, self._prefill_tokens // INTERACTIVE_DIVISOR) if found is None else max(_MIN_CHUNK, found)

    def _prefill_all(self, prefilling: list[Sequence], budget: int, *, has_scored: bool = False) -> list[StepEntry]:
        """Prompt chunks in order of admission; `has_scored`: the step has a prompt with logprobs."""
        entries: list[StepEntry] = []
        for sequence in sorted(prefilling, key=lambda sequence: sequence.admission):
            if budget <= 0:
                break
            if sequence.wants_prompt_logprobs and has_scored:
                continue  # rows are expensive, and the buffer for logits holds those of one such prompt
            entry = self._prefill(sequence, min(budget, EXTRA_ROWS) if sequence.wants_prompt_logprobs else budget)
            entries.append(entry)
            has_scored = has_scored or entry.wants_prompt_logprobs
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


def _num_tokens(entries: list[StepEntry]) -> int:
    return sum(len(entry.tokens) for entry in entries)
