"""Which tokens go into the next step, and what a step's result means. Pure Python over token ids.

A step mixes one token of every sequence that decodes with chunks of prompts still to be read, under a token budget:

    slot 0  ·········■           decode: 1 token, sampled
    slot 1  ····■■■■■■           the last chunk of a prompt: sampled too
    slot 2  ■■■■■■····           a chunk: nothing to sample yet

Waiting requests are admitted chat first, then in order of arrival. Tokens that decode come before prompts, so a long prompt
delays nobody by more than its chunk.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from engine.messages import FinishReason, Priority
from engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Entry:
    """`tokens` of a sequence at positions `start`… in its slot; the last one is sampled if `is_sampled`."""

    sequence: Sequence
    slot: int
    start: int
    tokens: list[int]
    is_sampled: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: entries in batch order, never more tokens than the budget."""

    entries: list[Entry]

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole step."""
        return sum(len(entry.tokens) for entry in self.entries)

    @property
    def sampled(self) -> list[Entry]:
        """Entries that give a new token, in batch order."""
        return [entry for entry in self.entries if entry.is_sampled]


class Scheduler:
    """Slots and the queue before them. `is_end` says whether a token ends a generation."""

    def __init__(
        self, *, slots: int, context_size: int, batch_tokens: int, prefill_tokens: int, is_end: Callable[[int], bool]
    ) -> None:
        assert batch_tokens >= slots, "every slot must be able to decode in one step"
        self._context_size = context_size
        self._batch_tokens = batch_tokens
        self._prefill_tokens = prefill_tokens
        self._is_end = is_end
        self._slots: list[Sequence | None] = [None] * slots
        self._waiting: list[tuple[int, int, Sequence]] = []
        self._arrivals = itertools.count()
        self._by_key: dict[tuple[str, str], Sequence] = {}

    @property
    def running(self) -> list[Sequence]:
        """Sequences in slots."""
        return [sequence for sequence in self._slots if sequence is not None]

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._by_key) - len(self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Its prompt is not empty and leaves room for a token."""
        assert 0 < len(sequence.tokens) < self._context_size, "checked before it came here"
        rank = 0 if sequence.priority is Priority.CHAT else 1
        heapq.heappush(self._waiting, (rank, next(self._arrivals), sequence))
        self._by_key[sequence.key] = sequence

    def find(self, client: str, request_id: str) -> Sequence | None:
        """A sequence that waits or runs."""
        return self._by_key.get((client, request_id))

    def of_client(self, client: str) -> list[Sequence]:
        """Everything a client has here."""
        return [sequence for sequence in self._by_key.values() if sequence.client == client]

    def admit(self) -> list[Sequence]:
        """Give free slots to those who waited longest; returns them."""
        admitted = []
        for slot, held in enumerate(self._slots):
            if held is None and (sequence := self._next_waiting()) is not None:
                sequence.slot = slot
                self._slots[slot] = sequence
                admitted.append(sequence)
        return admitted

    def plan(self) -> Plan:
        """The next step; empty when nothing is in a slot."""
        decoding: list[Sequence] = []
        reading: list[Sequence] = []
        for sequence in self._slots:
            if sequence is not None:
                (decoding if sequence.num_todo == 1 else reading).append(sequence)
        entries = [_entry(sequence, 1) for sequence in decoding]
        budget = min(self._prefill_tokens, self._batch_tokens - len(entries))
        for sequence in reading:
            if budget <= 0:
                break
            length = min(budget, sequence.num_todo)
            entries.append(_entry(sequence, length))
            budget -= length
        return Plan(entries)

    def apply(self, plan: Plan, sampled: list[int]) -> list[Sequence]:
        """Record a step: one token per sampled entry. Returns the sequences that got a token.

        A sequence that reached its end has its `finish_reason`; it keeps its slot until `release`.
        """
        for entry in plan.entries:
            entry.sequence.num_computed += len(entry.tokens)
        grown = []
        for entry, token in zip(plan.sampled, sampled, strict=True):
            sequence = entry.sequence
            sequence.tokens.append(token)
            sequence.finish_reason = self._finish_reason(sequence, token)
            grown.append(sequence)
        return grown

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its slot is free."""
        if self._by_key.pop(sequence.key, None) is not None and sequence.slot is not None:
            self._slots[sequence.slot] = None

    def check_integrity(self) -> None:
        """What must hold between any two calls."""
        running = self.running
        assert len({id(sequence) for sequence in running}) == len(running), "a sequence holds two slots"
        for slot, held in enumerate(self._slots):
            assert held is None or held.slot == slot, "a slot's sequence thinks it is elsewhere"
            assert held is None or self._by_key.get(held.key) is held, "a slot holds a forgotten sequence"
        for sequence in self._by_key.values():
            assert sequence.num_computed <= len(sequence.tokens) <= self._context_size, "computed more than there is"
            assert sequence.slot is not None or sequence.num_computed == 0, "computed without a slot"

    def _next_waiting(self) -> Sequence | None:
        while self._waiting:
            _, _, sequence = heapq.heappop(self._waiting)
            if self._by_key.get(sequence.key) is sequence:  # not cancelled meanwhile
                return sequence
        return None

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        if not sequence.ignore_eos and self._is_end(token):
            return FinishReason.STOP
        if sequence.num_generated == sequence.max_tokens or len(sequence.tokens) >= self._context_size:
            return FinishReason.LENGTH
        return None


def _entry(sequence: Sequence, length: int) -> Entry:
    assert sequence.slot is not None, "planned sequences have slots"
    start = sequence.num_computed
    tokens = sequence.tokens[start : start + length]
    return Entry(sequence, sequence.slot, start, tokens, start + length == len(sequence.tokens))
