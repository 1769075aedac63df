"""Which sequences run, and what a step's result means for them. Pure Python over token ids.

A step mixes the tokens of every sequence that decodes with pieces of prompts still to be read:

    slot 0  ·········■           decode: one token, or several that a constraint forces
    slot 1  ····■■■■■■           the last piece of a prompt: sampled too
    slot 2  ■■■■■■····           a piece: nothing to sample yet
    slot 3  ·····                paused: its memory is kept, it computes nothing

At most `slots` sequences run side by side; the slots beyond that many keep what is paused, and histories whose start
somebody may need again. Chat is admitted before batch and takes the place of the youngest batch sequence if it must. Who
waits for a text that somebody is just reading waits for that, and then forks it. A sequence that is `exclusive` has every
other step to itself: if it ends the engine, it is known which one it was, and the others hardly wait for it meanwhile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from engine.errors import DecodeFailed
from engine.scheduler.kv_cache import MIN_PREFIX_TO_WAIT_FOR, KvCacheManager, slot_of
from engine.scheduler.queue import WaitingQueue
from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits, common_prefix
from engine.scheduler.step import SampleResult, StepPlan
from engine.scheduler.step_builder import StepBuilder
from engine.types import FinishReason, Priority

_LOOK_AHEAD: Final = 4


class Scheduler:
    """Who waits, who runs, who is paused. `is_end` says whether a token ends a generation."""

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
    ) -> None:
        traits = traits or MemoryTraits()
        self._max_running = slots
        self._context_size = context_size
        self._is_end = is_end
        self._shifts_context = shifts_context
        self._kv_cache = KvCacheManager(slots + spare_slots, traits, first_position)
        self._step_builder = StepBuilder(
            slots=slots,
            context_size=context_size,
            batch_tokens=batch_tokens,
            prefill_tokens=prefill_tokens,
            max_drafts=max_drafts if traits.can_trim else 0,
        )
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []
        self._paused: list[Sequence] = []
        self._by_key: dict[tuple[str, str], list[Sequence]] = {}
        self._admissions = itertools.count(1)
        self._was_exclusive = False

    # --- who is here -------------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[Sequence]:
        """Sequences that compute, in order of admission."""
        return list(self._running)

    @property
    def num_running(self) -> int:
        """How many compute."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that do not compute now: without a slot, or paused in one."""
        return len(self._waiting) + len(self._paused)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Its prompt is not empty and leaves room for a token."""
        assert 0 < len(sequence.tokens) < self._context_size, "checked before it came here"
        self._by_key.setdefault(sequence.key, []).append(sequence)
        self._waiting.add(sequence)

    def find(self, client: str, request_id: str) -> list[Sequence]:
        """The sequences of a request that wait or run."""
        return list(self._by_key.get((client, request_id), ()))

    def of_client(self, client: str) -> list[Sequence]:
        """Everything a client has here."""
        return [sequence for found in self._by_key.values() for sequence in found if sequence.client == client]

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is. What it computed stays in its slot for whoever begins the same way."""
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
        self._step_builder.discard(sequence)
        self._kv_cache.release_slot(sequence)

    def reset_memory(self) -> None:
        """The decoder's memory was cleared: whoever had some of it computes it again."""
        for sequence in [*self._running, *self._paused]:
            self._requeue(sequence)
        self._kv_cache.reset()

    # --- a step ------------------------------------------------------------------------------------------------------

    def admit(self) -> list[Sequence]:
        """Let those run whose turn it is; returns who got a slot anew."""
        self._kv_cache.tick()
        self._preempt_batch()
        self._resume_paused()
        admitted = []
        for sequence in self._candidates():
            if len(self._running) >= self._max_running:
                break
            if not self._should_wait_for_prefix(sequence) and self._assign_slot(sequence):
                admitted.append(sequence)
        self._kv_cache.align_prefills(admitted)
        return admitted

    def plan(self) -> StepPlan:
        """The next step; empty when nothing runs."""
        if not self.num_waiting:
            self._kv_cache.defragment(self._running)
        members = self._step_members()
        shifts = [self._kv_cache.shift(sequence, self._context_size) for sequence in members if self._is_full(sequence)]
        return StepPlan(self._step_builder.build(members), self._kv_cache.take_forks(), shifts)

    def _step_members(self) -> list[Sequence]:
        """Those who share the next step."""
        exclusive = next((sequence for sequence in self._running if sequence.exclusive), None)
        if exclusive is None:
            return self._running
        others = [sequence for sequence in self._running if not sequence.exclusive]
        self._was_exclusive = not others or not self._was_exclusive
        return [exclusive] if self._was_exclusive else others

    def apply(self, plan: StepPlan, sampled: list[SampleResult]) -> list[tuple[Sequence, list[int], SampleResult]]:
        """Record a step: one result per sampled entry. Returns each sequence that grew, with its new tokens and where from.

        A sequence that reached its end has its `finish_reason`; it keeps its slot until `release`.
        """
        results = iter(sampled)
        grown = []
        for entry in plan.entries:
            sequence = entry.sequence
            result = next(results) if entry.num_rows else None
            sequence.num_computed += len(entry.tokens) - entry.num_drafts
            if result is not None:
                if entry.num_drafts:
                    sequence.num_computed += result.num_accepted
                    self._step_builder.record_accepted(sequence, result.num_accepted)
                if entry.wants_prompt_logprobs:
                    sequence.prompt_logprobs += result.prompt_logprobs
                if result.tokens or result.failure is not None:
                    grown.append((sequence, self._append(sequence, result), result))
            self._kv_cache.record_computed(entry)
        return grown

    def evict(self) -> Fork:
        """Give memory back when a step found no room: the history that was used longest ago, else a paused sequence.

        Raises DecodeFailed when those who run have all of it.
        """
        fork = self._kv_cache.evict_history()
        if fork is not None:
            return fork
        if not self._paused:
            raise DecodeFailed("The memory of the model is full.")
        slot = slot_of(self._paused[-1])
        self._requeue(self._paused[-1])
        return self._kv_cache.clear_slot(slot)

    def check_integrity(self) -> None:
        """What must hold between any two calls."""
        assert len(self._running) <= self._max_running, "too many run"
        known = {sequence for found in self._by_key.values() for sequence in found}
        placed = [*self._running, *self._paused]
        waiting = list(self._waiting)
        assert len(placed) + len(waiting) == len(known), "a sequence is in two places, or in none"
        assert {*placed, *waiting} == known, "a sequence is somewhere unknown"
        assert all(sequence.slot is None and sequence.num_computed == 0 for sequence in waiting), (
            "computed without a slot"
        )
        self._kv_cache.check_integrity(placed)

    # --- admission ---------------------------------------------------------------------------------------------------

    def _preempt_batch(self) -> None:
        """Chat that waits takes the places of the youngest batch sequences.

        One whose context was shifted stays: it could not be computed again if its slot were needed.
        """
        waiting = sum(1 for _ in itertools.takewhile(_is_chat, itertools.islice(self._waiting, self._max_running)))
        for _ in range(waiting - (self._max_running - len(self._running))):
            batch = [sequence for sequence in self._running if not _is_chat(sequence) and not sequence.num_shifted]
            if not batch:
                return
            youngest = max(batch, key=lambda sequence: sequence.admission)
            self._running.remove(youngest)
            self._paused.append(youngest)

    def _resume_paused(self) -> None:
        """Who was paused goes on before anybody new begins, but after chat."""
        self._paused.sort(key=lambda sequence: sequence.admission)
        while self._paused and len(self._running) < self._max_running and not self._waiting.has_chat:
            self._running.append(self._paused.pop(0))

    def _candidates(self) -> list[Sequence]:
        """Those whose turn it is, and a few more in case somebody waits for a text that is being read."""
        free = self._max_running - len(self._running)
        return list(itertools.islice(self._waiting, free + _LOOK_AHEAD)) if free > 0 else []

    def _should_wait_for_prefix(self, sequence: Sequence) -> bool:
        """Is somebody just reading what this one needs? Then it waits, and forks."""
        if sequence.wants_prompt_logprobs:
            return False
        longest, prefilling = 0, None
        for other in self._running:
            if other.is_prefilling and other.tenant == sequence.tenant:
                most = min(len(other.tokens), len(sequence.tokens) - 1)
                length = common_prefix(other.tokens, sequence.tokens, most)
                if length > max(longest, other.num_computed):
                    longest, prefilling = length, other
        if prefilling is None:
            return False
        min_saved = 1 if prefilling.key == sequence.key else MIN_PREFIX_TO_WAIT_FOR
        if longest - self._kv_cache.num_reusable(sequence) < min_saved:
            return False
        if self._kv_cache.traits.can_trim:
            return True
        prefilling.snapshot_at = longest if prefilling.snapshot_at is None else prefilling.snapshot_at
        return prefilling.snapshot_at <= longest

    def _assign_slot(self, sequence: Sequence) -> bool:
        """Give a slot, if need be that of somebody who is paused; False when none can be had."""
        if not self._kv_cache.assign_slot(sequence, self._running):
            if not self._paused or not _is_chat(sequence):
                return False
            self._requeue(self._paused[-1])
            self._kv_cache.assign_slot(sequence, self._running)
        sequence.admission = sequence.admission or next(self._admissions)
        self._waiting.remove(sequence)
        self._running.append(sequence)
        for follower in itertools.islice(self._waiting, 1):
            self._kv_cache.plan_snapshot(sequence, follower)
        return True

    def _requeue(self, sequence: Sequence) -> None:
        """Take its slot away; it waits at its old turn and will compute its tokens again."""
        (self._running if sequence in self._running else self._paused).remove(sequence)
        self._kv_cache.release_slot(sequence)
        sequence.num_computed = 0
        sequence.prompt_logprobs.clear()
        self._waiting.requeue(sequence)

    # --- results -----------------------------------------------------------------------------------------------------

    def _append(self, sequence: Sequence, result: SampleResult) -> list[int]:
        """Add new tokens until one ends the answer; returns those that were added."""
        new: list[int] = []
        for token in result.tokens:
            sequence.tokens.append(token)
            new.append(token)
            sequence.finish_reason = self._finish_reason(sequence, token)
            if sequence.finish_reason is not None:
                break
        if result.is_complete and len(new) == len(result.tokens):
            sequence.finish_reason = FinishReason.STOP  # at a limit too: there is no more to come
        sequence.num_computed = min(sequence.num_computed, len(sequence.tokens))
        return new

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        if not sequence.ignore_eos and self._is_end(token):
            return FinishReason.STOP
        if sequence.num_generated == sequence.max_tokens:
            return FinishReason.LENGTH
        if len(sequence.tokens) >= self._context_size and not self._may_shift(sequence):
            return FinishReason.LENGTH
        return None

    def _may_shift(self, sequence: Sequence) -> bool:
        """A constrained answer cannot lose its middle, and would come in pieces too long for what is left."""
        return self._shifts_context and sequence.constraint is None

    def _is_full(self, sequence: Sequence) -> bool:
        return self._may_shift(sequence) and len(sequence.tokens) - sequence.num_shifted >= self._context_size


def _is_chat(sequence: Sequence) -> bool:
    return sequence.priority is Priority.CHAT
