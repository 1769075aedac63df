"""Where sequences live: giving slots to sequences and taking them back, with the memory operations that this takes.

Knows slots and sequences; nothing of queues or budgets. Operations are collected until the next step takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits, Slot, SlotTable, common_prefix, count_runs
from engine.scheduler.step import Shift, StepEntry

# A history of which less than this would be spared is not worth stopping or waiting for.
MIN_PREFIX_TO_WAIT_FOR: Final = 16
# A pass over the weights costs a processor about as much as this many tokens more in another pass.
_TOKENS_PER_PASS: Final = 16


class KvCacheManager:
    """The slots of one engine. `first_position` is as in `SlotTable`."""

    def __init__(self, num_slots: int, traits: MemoryTraits, first_position: Callable[[int], int]) -> None:
        self.traits = traits
        self._slots = SlotTable(num_slots, traits, first_position)
        self._forks: list[Fork] = []
        self._clock = 0

    def tick(self) -> None:
        """A step passes: what is used from here on was used later."""
        self._clock += 1

    def take_forks(self) -> list[Fork]:
        """What must be copied before the next step is computed."""
        forks, self._forks = self._forks, []
        return forks

    def num_reusable(self, sequence: Sequence) -> int:
        """How much of a prompt some slot would spare now."""
        return max(self._slots.num_reusable(slot, sequence) for slot in self._slots)

    def assign_slot(self, sequence: Sequence, running: list[Sequence]) -> bool:
        """Give a slot, with as much of the prompt as some slot already holds; False when all are held."""
        chosen = self._slots.choose(sequence, {slot_of(other) for other in running})
        if chosen is None:
            return False
        source, target, length = chosen
        self._fork(source, target, length)
        target.tenant, target.tokens, target.holder = sequence.tenant, sequence.tokens, sequence
        target.num_valid = sequence.num_computed = length
        if sequence.num_cached is None:
            sequence.num_cached = min(length, sequence.num_prompt_tokens)  # what is forced to follow is no prompt
        sequence.slot, sequence.prefill_until = target.index, len(sequence.tokens)
        sequence.snapshot_at = None
        return True

    def align_prefills(self, assigned: list[Sequence]) -> None:
        """Of those just placed, let some read a few known tokens again, so that as many are left to each.

        Split memory computes only equal lengths side by side: seven questions of 23 to 29 tokens on one document would take a
        pass each.
        """
        if not self.traits.is_split or not self.traits.can_trim or self.traits.window:
            return
        target = 0
        for sequence in sorted(assigned, key=lambda sequence: sequence.num_uncomputed, reverse=True):
            missing = target - sequence.num_uncomputed
            if not 0 <= missing <= _TOKENS_PER_PASS:
                target = sequence.num_uncomputed
            elif 0 < missing <= sequence.num_computed:
                self._truncate(sequence, missing)

    def _truncate(self, sequence: Sequence, number: int) -> None:
        slot = self._slots[slot_of(sequence)]
        slot.num_valid = sequence.num_computed = sequence.num_computed - number
        sequence.num_cached = min(sequence.num_cached or 0, slot.num_valid)
        self._forks.append(Fork(slot.index, slot.index, slot.num_valid))

    def release_slot(self, sequence: Sequence) -> None:
        """Take the slot back, if it has one; its history stays for whoever begins the same way."""
        if sequence.slot is None:
            return
        slot = self._slots[sequence.slot]
        slot.holder, slot.used_at = None, self._clock
        slot.num_valid = min(slot.num_valid, len(sequence.tokens))
        slot.tokens = sequence.tokens[: slot.num_valid]
        sequence.slot = None

    def record_computed(self, entry: StepEntry) -> None:
        """A step's entry is in memory."""
        slot = self._slots[entry.slot]
        slot.num_valid, slot.used_at = entry.sequence.num_computed, self._clock
        if entry.sequence.num_computed == entry.sequence.snapshot_at:
            self._take_snapshot(entry.sequence, slot)

    def shift(self, sequence: Sequence, context_size: int) -> Shift:
        """Make room in a full context. What is left in the slot is nobody's prompt any more."""
        keep = min(sequence.num_prompt_tokens, context_size // 4)
        discard = (context_size - keep) // 2
        sequence.num_shifted += discard
        slot = self._slots[slot_of(sequence)]
        slot.tenant = None
        return Shift(slot.index, keep, discard)

    def plan_snapshot(self, sequence: Sequence, follower: Sequence) -> None:
        """A memory that cannot be trimmed is forked where a history ends: plan to stop where the next one's text parts."""
        if self.traits.can_trim or follower.tenant != sequence.tenant:
            return
        length = common_prefix(sequence.tokens, follower.tokens, min(len(sequence.tokens), len(follower.tokens)) - 1)
        if length - sequence.num_computed >= MIN_PREFIX_TO_WAIT_FOR:
            sequence.snapshot_at = length

    def defragment(self, running: list[Sequence]) -> None:
        """In split memory a gap between slots costs a pass of its own: bring the last one nearer, if that closes one."""
        if not self.traits.is_split or self._forks:
            return
        held = {slot_of(sequence): sequence for sequence in running}
        num_runs_now = count_runs(set(held))
        if num_runs_now < 2:
            return
        last = max(held)
        moves = ((count_runs(set(held) - {last} | {slot.index}), slot) for slot in self._slots.free())
        num_runs, target = min(moves, key=lambda move: move[0])
        if num_runs < num_runs_now:
            self._move(held[last], self._slots[last], target)

    def evict_history(self) -> Fork | None:
        """Clear the history that was used longest ago; None when there is none."""
        held = [slot for slot in self._slots.free() if slot.num_valid]
        return self.clear_slot(min(held, key=lambda slot: slot.used_at).index) if held else None

    def clear_slot(self, index: int) -> Fork:
        """Forget what a slot holds, which nobody may be holding; returns what must be done to its memory."""
        self._slots[index].clear()
        return Fork(index, index, 0)

    def reset(self) -> None:
        """The memory was cleared: no slot holds anything."""
        for slot in self._slots:
            slot.clear()
        self._forks.clear()

    def check_integrity(self, assigned: list[Sequence]) -> None:
        """What must hold between any two steps; `placed` are those who must have a slot."""
        for slot in self._slots:
            assert slot.num_valid <= len(slot.tokens), "more memory than tokens"
            holder = slot.holder
            assert holder is None or holder.slot == slot.index, "a slot's sequence thinks it is elsewhere"
            assert holder is None or holder in assigned, "a slot holds a forgotten sequence"
            assert holder is None or slot.num_valid == holder.num_computed, "slot and sequence disagree"
        for sequence in assigned:
            assert self._slots[slot_of(sequence)].holder is sequence, "a sequence's slot is somebody else's"
            assert sequence.num_computed <= len(sequence.tokens), "computed more than there is"

    def _fork(self, source: Slot, target: Slot, length: int) -> None:
        if source is not target or target.num_valid != length:
            self._forks.append(Fork(source.index, target.index, length))
        source.used_at = target.used_at = self._clock

    def _take_snapshot(self, sequence: Sequence, slot: Slot) -> None:
        """Keep a copy of what is computed so far in a free slot, away from those that are filled first."""
        sequence.snapshot_at = None
        free = self._slots.free()
        if free:
            target = min(free, key=lambda slot: (slot.num_valid > 0, slot.used_at, -slot.index))
            self._fork(slot, target, slot.num_valid)
            target.tokens = sequence.tokens[: slot.num_valid]
            target.num_valid, target.tenant = slot.num_valid, slot.tenant

    def _move(self, sequence: Sequence, source: Slot, target: Slot) -> None:
        self._fork(source, target, source.num_valid)
        target.tokens, target.num_valid, target.tenant = source.tokens, source.num_valid, source.tenant
        target.holder, source.holder = sequence, None
        sequence.slot = target.index
        self._forks.append(self.clear_slot(source.index))


def slot_of(sequence: Sequence) -> int:
    """The slot of a sequence that has one."""
    assert sequence.slot is not None, "whoever runs or is paused has a slot"
    return sequence.slot
