"""KV cache manager: assigns slots to sequences, releases them, and plans the memory operations that this takes.

Operations are collected until the next step takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits, Slot, SlotTable, common_prefix, count_runs
from engine.scheduler.step import Shift, StepEntry

# Tokens that a wait for a prefix, or a snapshot of one, must save at least.
MIN_PREFIX_TO_WAIT_FOR: Final = 16
# One more pass over the weights costs a CPU about as much as this many more tokens in another pass.
_TOKENS_PER_PASS: Final = 16


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Tokens in the memory of the model: `held` by sequences, `reusable` of ended ones, and all that it has room for."""

    held: int
    reusable: int
    total: int


class KvCacheManager:
    """The slots of one engine. `first_position` is that of `SlotTable`."""

    def __init__(self, num_slots: int, traits: MemoryTraits, first_position: Callable[[int], int]) -> None:
        self.traits = traits
        self._slots = SlotTable(num_slots, traits, first_position)
        self._forks: list[Fork] = []
        self._clock = 0

    def tick(self) -> None:
        """Advance the clock of slot use by one step."""
        self._clock += 1

    def take_forks(self) -> list[Fork]:
        """Return the copies to make before the next step, and clear the list."""
        forks, self._forks = self._forks, []
        return forks

    def num_reusable(self, sequence: Sequence) -> int:
        """Tokens of a prompt that the best slot holds now."""
        return max(self._slots.num_reusable(slot, sequence) for slot in self._slots)

    def assign_slot(self, sequence: Sequence, running: list[Sequence]) -> bool:
        """Assign a slot and reuse as much of the prompt as some slot holds; False when all slots are held."""
        chosen = self._slots.choose(sequence, {slot_of(other) for other in running})
        if chosen is None:
            return False
        source, target, length = chosen
        self._fork(source, target, length)
        target.tenant, target.tokens, target.holder = sequence.tenant, sequence.tokens, sequence
        target.num_valid = sequence.num_computed = length
        if sequence.num_cached is None:
            sequence.num_cached = min(length, sequence.num_prompt_tokens)  # forced tokens after the prompt do not count
        sequence.slot, sequence.prefill_until = target.index, len(sequence.tokens)
        sequence.snapshot_at = None
        return True

    def align_prefills(self, assigned: list[Sequence]) -> None:
        """Let newly assigned sequences compute a few reused tokens again, so that each has equally many tokens left.

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
        """Release the slot of a sequence, if it has one; the history stays for prompts that begin the same way."""
        if sequence.slot is None:
            return
        slot = self._slots[sequence.slot]
        slot.holder, slot.used_at = None, self._clock
        slot.num_valid = min(slot.num_valid, len(sequence.tokens))
        slot.tokens = sequence.tokens[: slot.num_valid]
        sequence.slot = None

    def record_computed(self, entry: StepEntry) -> None:
        """Record that the tokens of an entry are in memory."""
        slot = self._slots[entry.slot]
        slot.num_valid, slot.used_at = entry.sequence.num_computed, self._clock
        if entry.sequence.num_computed == entry.sequence.snapshot_at:
            self._take_snapshot(entry.sequence, slot)

    def use(self, total: int) -> MemoryUse:
        """The use of a memory for `total` tokens. Slots that share a prefix count it each, so the sums are limited."""
        held = sum(slot.num_valid for slot in self._slots if slot.holder is not None)
        reusable = sum(slot.num_valid for slot in self._slots if slot.holder is None)
        return MemoryUse(min(held, total), min(reusable, max(0, total - held)), total)

    def shift(self, sequence: Sequence, context_size: int) -> Shift:
        """Plan to make room in a full context. The rest of the slot then matches no prompt, so no tenant may reuse it."""
        keep = min(sequence.num_prompt_tokens, context_size // 4)
        discard = (context_size - keep) // 2
        sequence.num_shifted += discard
        slot = self._slots[slot_of(sequence)]
        slot.tenant = None
        return Shift(slot.index, keep, discard)

    def plan_snapshot(self, sequence: Sequence, follower: Sequence) -> None:
        """Plan to stop the prefill where the prompt of the next sequence diverges, and to copy the state there.

        Only for memory that cannot be trimmed: such a history can be copied only at its end.
        """
        if self.traits.can_trim or follower.tenant != sequence.tenant:
            return
        length = common_prefix(sequence.tokens, follower.tokens, min(len(sequence.tokens), len(follower.tokens)) - 1)
        if length - sequence.num_computed >= MIN_PREFIX_TO_WAIT_FOR:
            sequence.snapshot_at = length

    def defragment(self, running: list[Sequence]) -> None:
        """Move the sequence of the last slot into a gap if that leaves fewer gaps: in split memory each costs a pass."""
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
        """Clear the least recently used history; None when there is none."""
        held = [slot for slot in self._slots.free() if slot.num_valid]
        return self.clear_slot(min(held, key=lambda slot: slot.used_at).index) if held else None

    def clear_slot(self, index: int) -> Fork:
        """Clear a slot that no sequence holds; return the operation that clears its memory."""
        self._slots[index].clear()
        return Fork(index, index, 0)

    def reset(self) -> None:
        """Clear all slots after the memory was cleared."""
        for slot in self._slots:
            slot.clear()
        self._forks.clear()

    def check_integrity(self, assigned: list[Sequence]) -> None:
        """Check the invariants that hold between two steps; each of the `assigned` sequences must have a slot."""
        for slot in self._slots:
            assert slot.num_valid <= len(slot.tokens), "more memory than tokens"
            holder = slot.holder
            assert holder is None or holder.slot == slot.index, "the sequence in a slot has another slot"
            assert holder is None or holder in assigned, "a slot holds a released sequence"
            assert holder is None or slot.num_valid == holder.num_computed, "slot and sequence disagree"
        for sequence in assigned:
            assert self._slots[slot_of(sequence)].holder is sequence, "the slot of a sequence holds another one"
            assert sequence.num_computed <= len(sequence.tokens), "computed more than there is"

    def _fork(self, source: Slot, target: Slot, length: int) -> None:
        if source is not target or target.num_valid != length:
            self._forks.append(Fork(source.index, target.index, length))
        source.used_at = target.used_at = self._clock

    def _take_snapshot(self, sequence: Sequence, slot: Slot) -> None:
        """Copy what is computed so far into a free slot, away from the slots that are assigned first."""
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
    assert sequence.slot is not None, "a running or paused sequence has a slot"
    return sequence.slot
