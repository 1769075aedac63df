"""Scheduler: admits sequences, plans steps, and applies their results. Pure Python over token ids.

A step mixes the tokens of every decoding sequence with chunks of prompts:

    slot 0  ·········■           decode: one token, or several that a constraint forces
    slot 1  ····■■■■■■           the last chunk of a prompt: sampled too
    slot 2  ■■■■■■····           a chunk: nothing to sample yet
    slot 3  ·····                paused: its memory is kept, it computes nothing

At most `slots` sequences run side by side; the slots beyond that keep paused sequences, and histories that later prompts may
reuse. Chat is admitted before batch and preempts the youngest batch sequence if necessary. A sequence waits while its
prefix is being prefilled, then copies that slot. A sequence that is `exclusive` has every other step to itself: if it crashes the
engine, the crash is attributed to it, and the other sequences are hardly delayed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from engine.errors import DecodeFailed
from engine.scheduler.chat_share import ChatShare
from engine.scheduler.draft_planner import DraftPlanner
from engine.scheduler.kv_cache import KvCacheManager, MemoryUse, slot_of
from engine.scheduler.layout import LayoutChoice
from engine.scheduler.prefix_index import Match
from engine.scheduler.queue import WaitingQueue
from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import SampleResult, StepEntry, StepPlan, TokenCounts
from engine.scheduler.step_builder import StepBuilder
from engine.scheduler.step_cost import size_of
from engine.types import FinishReason, Priority, RequestKey

_LOOK_AHEAD: Final = 4


class Scheduler:
    """The waiting, running and paused sequences of one engine. `is_end` is true for a token that ends a generation."""

    def __init__(
        self,
        *,
        slots: int,
        spare_slots: int = 0,
        context_size: int,
        batch_tokens: int,
        prefill_tokens: int,
        is_end: Callable[[int], bool],
        traits: MemoryTraits | None = None,
        first_position: Callable[[int], int] = lambda _: 0,
        shifts_context: bool = False,
        max_drafts: int = 0,
        drafts_always: bool = True,
    ) -> None:
        self._context_size = context_size
        self._batch_tokens = batch_tokens
        self._is_end = is_end
        self._first_position = first_position
        self._shifts_context = shifts_context
        self._max_drafts = max_drafts
        self._drafts_always = drafts_always
        self.share = ChatShare()
        self.counts = TokenCounts()
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []
        self._paused: list[Sequence] = []
        self._by_key: dict[RequestKey, list[Sequence]] = {}
        self._admissions = itertools.count(1)
        self._was_exclusive = False
        self._plans_chat = False  # does the last plan have chat, or might it have had any?
        self._urgent: set[Sequence] = set()
        self._layout_choice = LayoutChoice()
        self.set_memory(slots, spare_slots, prefill_tokens, traits or MemoryTraits())

    def set_memory(self, slots: int, spare_slots: int, prefill_tokens: int, traits: MemoryTraits) -> None:
        """Go on with another memory of the decoder, which is empty: all sequences wait, and compute their tokens anew."""
        if self._running or self._paused:
            self.reset_memory()
        self._max_running, self._num_spare, self._prefill_tokens = slots, spare_slots, prefill_tokens
        self._memory_tokens = self._context_size * (slots + spare_slots if traits.is_split else slots)
        self._kv_cache = KvCacheManager(slots + spare_slots, spare_slots, prefill_tokens, traits, self._first_position)
        self._drafts = DraftPlanner(
            self.share.cost,
            context_size=self._context_size,
            max_drafts=self._max_drafts if traits.can_trim else 0,
            most_rows=self._batch_tokens - slots,
            is_always=self._drafts_always,
            is_split=traits.is_split,
        )
        self._step_builder = StepBuilder(
            self.share,
            slots=slots,
            batch_tokens=self._batch_tokens,
            prefill_tokens=prefill_tokens,
            drafts=self._drafts,
        )

    @property
    def wants_other_layout(self) -> bool:
        """Would the work run faster if slots shared their memory, or did not? Only computed tokens of a batch would be lost."""
        if self.has_chat or self._paused or self.has_shifted:
            return False
        is_split = self._kv_cache.traits.is_split
        return self._layout_choice.is_due(self._running, self._waiting, slots=self._max_running, is_split=is_split)

    def set_traits(self, traits: MemoryTraits) -> None:
        """Go on with an empty memory of as many slots but other traits."""
        self.set_memory(self._max_running, self._num_spare, self._prefill_tokens, traits)

    # --- sequences ---------------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Sequence]:
        """Sequences that compute, in order of admission."""
        return list(self._running)

    @property
    def num_running(self) -> int:
        """Number of sequences that compute."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Number of sequences that do not compute: without a slot, or paused in one."""
        return len(self._waiting) + len(self._paused)

    @property
    def priority(self) -> Priority | None:
        """The priority of the most urgent sequence; None when there is no sequence."""
        if self.has_chat:
            return Priority.CHAT
        return Priority.BATCH if self._by_key else None

    @property
    def has_chat(self) -> bool:
        """Is there a chat sequence, running or waiting?"""
        return self._waiting.has_chat or self.has_running_chat

    @property
    def has_running_chat(self) -> bool:
        """Does a chat sequence compute?"""
        return any(map(_is_chat, self._running))

    @property
    def has_shifted(self) -> bool:
        """Has a sequence lost the oldest tokens of its context? It could not be computed anew."""
        return any(sequence.num_shifted for sequence in (*self._running, *self._paused))

    @property
    def has_new_chat(self) -> bool:
        """Does a chat sequence wait for its first token?"""
        running = (sequence for sequence in self._running if _is_chat(sequence))
        return self._waiting.has_chat or any(sequence.is_prefilling for sequence in running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Its prompt is not empty and leaves room for a token."""
        assert 0 < len(sequence.tokens) < self._context_size, "the input processor checks the length"
        self._by_key.setdefault(sequence.key, []).append(sequence)
        self._waiting.add(sequence)
        self._layout_choice.add(sequence)

    def find(self, client: str, request_id: str) -> list[Sequence]:
        """The waiting and running sequences of a request."""
        return list(self._by_key.get((client, request_id), ()))

    def of_client(self, client: str) -> list[Sequence]:
        """All sequences of a client."""
        return [sequence for found in self._by_key.values() for sequence in found if sequence.client == client]

    def release(self, sequence: Sequence) -> None:
        """Remove a sequence in any state. Its slot keeps what is computed, for prompts that begin the same way."""
        siblings = self._by_key.get(sequence.key, [])
        if sequence not in siblings:
            return
        siblings.remove(sequence)
        if not siblings:
            del self._by_key[sequence.key]
        if sequence.slot is None:
            self._waiting.remove(sequence)
        else:
            (self._running if sequence in self._running else self._paused).remove(sequence)
        self._waiting.finish(sequence)
        self._drafts.discard(sequence)
        self._kv_cache.release_slot(sequence)

    def reset_memory(self) -> None:
        """Queue all sequences again after the memory of the decoder was cleared; they compute their tokens anew."""
        for sequence in [*self._running, *self._paused]:
            self._requeue(sequence)
        self._kv_cache.reset()

    # --- steps -------------------------------------------------------------------------------------------------------

    def admit(self) -> list[Sequence]:
        """Preempt, resume and admit sequences; return those that got a slot."""
        self._urgent.clear()
        self._preempt_batch()
        self._resume_paused()
        admitted = []
        for sequence in self._candidates():
            if len(self._running) >= self._max_running:
                break
            matches = self._kv_cache.search(sequence)
            if not self._should_wait(sequence, matches) and self._assign_slot(sequence, matches):
                admitted.append(sequence)
        self._kv_cache.align_prefills(admitted)
        for sequence in admitted:
            self.counts.prompt += sequence.num_computed
            self.counts.cached += sequence.num_computed
        return admitted

    def plan(self) -> StepPlan:
        """Plan the next step; it is empty when no sequence runs."""
        self._plans_chat = self.has_running_chat or bool(self._urgent)
        if not self.num_waiting:
            self._kv_cache.defragment()
        full = [sequence for sequence in self._running if self._is_full(sequence)] if self._shifts_context else []
        shifts = [self._kv_cache.shift(sequence, self._context_size) for sequence in full]
        entries = self._entries()
        # copies that are due, such as snapshots, wait for a step that is computed
        return StepPlan(entries, self._kv_cache.take_forks() if entries else [], shifts)

    def _entries(self) -> list[StepEntry]:
        """The entries of the next step: an exclusive sequence has every other step to itself, unless chat comes before it.

        Beside chat, both it and the other lines wait for time that chat has earned. Only a step in which lines were computed is a
        turn of theirs, and while it is the exclusive one's turn, none of them takes that time from it.
        """
        exclusive = next((sequence for sequence in self._running if sequence.exclusive), None)
        if exclusive is None:
            return self._step_builder.build(self._running, urgent=self._urgent)
        others = [sequence for sequence in self._running if not sequence.exclusive]
        chat = [sequence for sequence in others if self._is_urgent(sequence)]
        turns = [others, [exclusive]] if self._was_exclusive else [[exclusive], chat or others]
        for members in turns:
            if entries := self._step_builder.build(members, urgent=self._urgent, beside_chat=self.has_running_chat):
                if members[0] is exclusive:
                    self._was_exclusive = True
                elif len(chat) == len(others) or not all(self._is_urgent(entry.sequence) for entry in entries):
                    self._was_exclusive = False
                return entries
        return []

    def record_seconds(self, plan: StepPlan, seconds: float) -> None:
        """Record the duration of a step that was applied."""
        if not self._plans_chat:
            self.share.record_without_chat(size_of(plan.entries), seconds)
            return
        chat = [entry for entry in plan.entries if self._is_urgent(entry.sequence)]
        batch = [entry for entry in plan.entries if not self._is_urgent(entry.sequence)]
        self.share.record(size_of(chat), size_of(batch), seconds)

    def apply(self, plan: StepPlan, sampled: list[SampleResult]) -> list[tuple[Sequence, list[int], SampleResult]]:
        """Record a step; return each sequence that has new tokens or failed, with its tokens and its result.

        There is one result per sampled entry. A sequence that reached its end has its `finish_reason`; it keeps its slot until
        `release`.
        """
        results = iter(sampled)
        grown = []
        for entry in plan.entries:
            sequence = entry.sequence
            if sequence.is_prefilling:
                self.counts.prompt += len(entry.tokens)
            sequence.num_computed += len(entry.tokens) - entry.num_drafts
            if entry.num_rows:
                result = next(results)
                if entry.num_drafts:
                    sequence.num_computed += result.num_accepted
                if entry.wants_prompt_logprobs:
                    sequence.prompt_logprobs += result.prompt_logprobs
                if result.tokens or result.failure is not None:
                    new = self._append(sequence, result)
                    self.counts.output += len(new)
                    grown.append((sequence, new, result))
            self._kv_cache.record_computed(entry)
        return grown

    def evict(self) -> Fork:
        """Free memory when a step found no room: the least recently used history, else a paused sequence.

        Raises DecodeFailed when running sequences hold all of it.
        """
        fork = self._kv_cache.evict_history()
        if fork is not None:
            return fork
        if not self._paused:
            raise DecodeFailed("The memory of the model is full.")
        slot = slot_of(self._paused[-1])
        self._requeue(self._paused[-1])
        return self._kv_cache.clear_slot(slot)

    def memory_use(self) -> MemoryUse:
        """The use of the KV cache; callable from any thread, with an approximate result."""
        return self._kv_cache.use(self._memory_tokens)

    def check_integrity(self) -> None:
        """Check the invariants that hold between any two calls."""
        assert len(self._running) <= self._max_running, "too many sequences run"
        known = {sequence for found in self._by_key.values() for sequence in found}
        placed = [*self._running, *self._paused]
        waiting = list(self._waiting)
        assert len(placed) + len(waiting) == len(known), "a sequence is in two places, or in none"
        assert {*placed, *waiting} == known, "a placed or waiting sequence is unknown"
        assert all(sequence.slot is None and sequence.num_computed == 0 for sequence in waiting), (
            "computed without a slot"
        )
        self._kv_cache.check_integrity(placed)

    # --- admission ---------------------------------------------------------------------------------------------------

    def _preempt_batch(self) -> None:
        """Pause the youngest batch sequences in favour of waiting chat.

        A sequence with a shifted context stays: it could not be computed again if its slot were needed.
        """
        if not self._waiting.has_chat:
            return
        waiting = sum(1 for _ in itertools.takewhile(_is_chat, itertools.islice(self._waiting, self._max_running)))
        for _ in range(waiting - (self._max_running - len(self._running))):
            batch = [sequence for sequence in self._running if not _is_chat(sequence) and not sequence.num_shifted]
            if not batch:
                return
            youngest = max(batch, key=lambda sequence: sequence.admission)
            self._running.remove(youngest)
            self._paused.append(youngest)
            self._kv_cache.pause(youngest)

    def _resume_paused(self) -> None:
        """Resume paused sequences: before any new sequence starts, but after chat."""
        self._paused.sort(key=lambda sequence: sequence.admission)
        while self._paused and len(self._running) < self._max_running and not self._waiting.has_chat:
            self._running.append(self._paused.pop(0))
            self._kv_cache.resume(self._running[-1])

    def _candidates(self) -> list[Sequence]:
        """The next sequences to admit, and a few more in case some of these must wait for a prefix."""
        free = self._max_running - len(self._running)
        return list(itertools.islice(self._waiting, free + _LOOK_AHEAD)) if free > 0 else []

    def _should_wait(self, sequence: Sequence, matches: list[Match]) -> bool:
        """Is a prefix being prefilled that this sequence needs? If a chat waits for it, it is as urgent as chat."""
        prefilling = self._kv_cache.find_awaited(sequence, matches)
        if prefilling is not None and _is_chat(sequence):
            self._urgent.add(prefilling)
        return prefilling is not None

    def _is_urgent(self, sequence: Sequence) -> bool:
        """Is this a chat, or does a chat wait for its prefix?"""
        return _is_chat(sequence) or sequence in self._urgent

    def _assign_slot(self, sequence: Sequence, matches: list[Match]) -> bool:
        """Assign a slot, for chat also that of a paused sequence; False when there is none."""
        if not self._kv_cache.assign_slot(sequence, matches):
            if not self._paused or not _is_chat(sequence):
                return False
            self._requeue(self._paused[-1])
            self._kv_cache.assign_slot(sequence, self._kv_cache.search(sequence))
        sequence.admission = sequence.admission or next(self._admissions)
        self._waiting.remove(sequence)
        self._running.append(sequence)
        for follower in itertools.islice(self._waiting, 1):
            self._kv_cache.plan_snapshot(sequence, follower)
        return True

    def _requeue(self, sequence: Sequence) -> None:
        """Release the slot of a sequence and queue it at its old position; it computes its tokens again."""
        (self._running if sequence in self._running else self._paused).remove(sequence)
        self._kv_cache.release_slot(sequence)
        sequence.num_computed = 0
        sequence.prompt_logprobs.clear()
        self._waiting.requeue(sequence)

    # --- results -----------------------------------------------------------------------------------------------------

    def _append(self, sequence: Sequence, result: SampleResult) -> list[int]:
        """Append new tokens up to the one that ends the output; return the appended ones."""
        if sequence.max_tokens == 0:  # the prompt was scored, and what follows it is dropped
            sequence.finish_reason = FinishReason.LENGTH
            return []
        new = result.tokens
        for number, token in enumerate(result.tokens, 1):
            sequence.tokens.append(token)
            reason = self._finish_reason(sequence, token)
            if reason is not None:
                sequence.finish_reason, new = reason, result.tokens[:number]
                break
        if result.is_complete and len(new) == len(result.tokens):
            sequence.finish_reason = FinishReason.STOP  # even at a limit: the constraint allows no more
        if sequence.num_computed > len(sequence.tokens):
            sequence.num_computed = len(sequence.tokens)
        return new

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        if not sequence.ignore_eos and self._is_end(token):
            return FinishReason.STOP
        length = len(sequence.tokens)
        if length - sequence.num_prompt_tokens == sequence.max_tokens:
            return FinishReason.LENGTH
        if length >= self._context_size and not self._may_shift(sequence):
            return FinishReason.LENGTH
        return None

    def _may_shift(self, sequence: Sequence) -> bool:
        """A constrained output cannot lose its middle, and forced tokens may exceed the room that a shift leaves."""
        return self._shifts_context and sequence.constraint is None

    def _is_full(self, sequence: Sequence) -> bool:
        return self._may_shift(sequence) and len(sequence.tokens) - sequence.num_shifted >= self._context_size


def _is_chat(sequence: Sequence) -> bool:
    return sequence.priority is Priority.CHAT
