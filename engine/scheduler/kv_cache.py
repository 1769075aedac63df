"""KV cache manager: assigns slots to sequences, releases them, and plans the memory operations that this takes.

Operations are collected until the next step takes them. A memory with a window, or without trimming, forgets the places where
another prompt could diverge. So places where prompts have diverged are copied to free slots while a prompt is computed
(a snapshot), and a history is continued in a copy where room allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from engine.scheduler.prefix_index import Match, common_prefix, members
from engine.scheduler.sequence import Sequence, Snapshot
from engine.scheduler.slots import Fork, MemoryTraits, Slot, SlotTable
from engine.scheduler.step import Shift, StepEntry

# Tokens that a wait for a prefix, or a snapshot of one, must save at least.
MIN_PREFIX_TO_WAIT_FOR: Final = 16
# One more pass over the weights costs a CPU about as much as this many more tokens in another pass.
_TOKENS_PER_PASS: Final = 16
# A sequence that decodes gets fewer tokens than this in a step, forced ones and drafts included.
_MOST_DECODED: Final = 72


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Tokens in the memory of the model: `held` by sequences, `reusable` of ended ones, and all that it has room for."""

    held: int
    reusable: int
    total: int


class KvCacheManager:
    """The slots of one engine, of which `num_spare` are beyond those that run side by side. A step has at most `prefill_tokens`
    of a prompt. `first_position` is that of `SlotTable`.
    """

    def __init__(
        self,
        num_slots: int,
        num_spare: int,
        prefill_tokens: int,
        traits: MemoryTraits,
        first_position: Callable[[int], int],
    ) -> None:
        self.traits = traits
        self._prefill_tokens = prefill_tokens
        self._memory_first_position = first_position
        self._forgets = traits.forgets
        self._slots = SlotTable(num_slots, num_spare, traits, self._first_position)
        self._forks: list[Fork] = []

    def take_forks(self) -> list[Fork]:
        """Return the copies to make before the next step, and clear the list."""
        forks, self._forks = self._forks, []
        return forks

    # --- slots of sequences ----------------------------------------------------------------------------------------------

    def search(self, sequence: Sequence) -> list[Match]:
        """Find the slots that begin like a prompt. The result holds until a slot is assigned or released."""
        return self._slots.search(sequence)

    def find_awaited(self, sequence: Sequence, matches: list[Match]) -> Sequence | None:
        """The running sequence that is prefilling a prefix that this one needs: it waits, and copies that slot."""
        reusable, _ = self._slots.longest(matches)
        for match in matches:
            if match.length <= reusable:
                break
            for index in members(match.mask & self._slots.running):
                other = self._slots[index].holder
                if other is not None and other.is_prefilling and match.length > other.num_computed:
                    min_saved = 1 if other.key == sequence.key else MIN_PREFIX_TO_WAIT_FOR
                    is_worth_it = match.length - reusable >= min_saved and self._will_offer(other, match.length)
                    return other if is_worth_it else None
        return None

    def assign_slot(self, sequence: Sequence, matches: list[Match]) -> bool:
        """Assign a slot and reuse as much of the prompt as some slot holds; False when all slots are held."""
        chosen = self._slots.choose(sequence, matches)
        if chosen is None:
            return False
        source, target, length = chosen
        if source is not target and source.holder is None and length == source.num_valid:
            self._slots.add_followers(source, 1)
        self._fork(source, target, length)
        self._slots.fill(target, sequence.tenant, sequence.tokens, length)
        self._slots.hold(target, sequence)
        sequence.num_computed = length
        if sequence.num_cached is None:
            sequence.num_cached = min(length, sequence.num_prompt_tokens)  # forced tokens after the prompt do not count
        sequence.prefill_until = len(sequence.tokens)
        sequence.snapshot = None
        if self.traits.forgets and matches:
            self._plan_snapshot(sequence, matches[0].length)
        return True

    def align_prefills(self, assigned: list[Sequence]) -> None:
        """Let newly assigned sequences compute a few reused tokens again, so that each has equally many tokens left.

        Split memory computes only equal lengths side by side: seven questions of 23 to 29 tokens on one document would take a
        pass each.
        """
        if not self.traits.is_split or self.traits.forgets:
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

    def pause(self, sequence: Sequence) -> None:
        """Record that a sequence does not compute; it keeps its slot."""
        self._slots.running &= ~(1 << slot_of(sequence))

    def resume(self, sequence: Sequence) -> None:
        """Record that a paused sequence computes again."""
        self._slots.running |= 1 << slot_of(sequence)

    def release_slot(self, sequence: Sequence) -> None:
        """Release the slot of a sequence, if it has one; the history stays for prompts that begin the same way."""
        if sequence.slot is None:
            return
        slot = self._slots[sequence.slot]
        slot.num_valid = min(slot.num_valid, len(sequence.tokens))
        self._slots.release(slot)
        if not slot.num_valid:
            self._slots.clear(slot)
        sequence.slot = None

    def record_computed(self, entry: StepEntry) -> None:
        """Record that the tokens of an entry are in memory."""
        slot, sequence = self._slots[entry.slot], entry.sequence
        slot.num_valid = sequence.num_computed
        if self._forgets:
            if sequence.snapshot is not None:
                self._take_snapshot(sequence, sequence.snapshot, slot)
            elif self.traits.slack and 0 <= sequence.num_computed - sequence.prefill_until < len(entry.tokens):
                self._plan_end(sequence)

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
        self._slots.fill(slot, None, slot.tokens, slot.num_valid)
        return Shift(slot.index, keep, discard)

    # --- snapshots -------------------------------------------------------------------------------------------------------

    def plan_snapshot(self, sequence: Sequence, follower: Sequence) -> None:
        """Plan to keep the place where the prompt of the next sequence diverges from that of a newly assigned one."""
        if not self.traits.forgets or follower.tenant != sequence.tenant:
            return
        most = min(len(sequence.tokens), len(follower.tokens)) - 1
        self._plan_snapshot(sequence, common_prefix(sequence.tokens, follower.tokens, most))

    def _plan_snapshot(self, sequence: Sequence, place: int) -> None:
        """Plan to keep a place that is still to be computed: the prefill stops where it would be lost."""
        if place - sequence.num_computed >= MIN_PREFIX_TO_WAIT_FOR:
            sequence.snapshot = Snapshot(place, place + self.traits.slack, is_known=True)

    def _plan_end(self, sequence: Sequence) -> None:
        """Plan to keep the end of a computed prompt, which a long answer would lose.

        The same prompt may come again, and a conversation may go on without the reasoning that an answer begins with.
        """
        place = sequence.prefill_until - 1
        sequence.snapshot = Snapshot(place, place + self.traits.slack, is_known=False)

    def _will_offer(self, prefilling: Sequence, place: int) -> bool:
        """Plan that a sequence leaves a history of this place, unless another is planned; True if it ends there or before."""
        if not self.traits.forgets:
            return True
        if prefilling.snapshot is None:
            prefilling.snapshot = Snapshot(place, place + self.traits.slack, is_known=True)
        return prefilling.snapshot.length <= place

    def _take_snapshot(self, sequence: Sequence, snapshot: Snapshot, slot: Slot) -> None:
        """Copy a planned place to a free slot, if it is computed and the next step could lose it."""
        most = self._prefill_tokens if sequence.is_prefilling else _MOST_DECODED
        if sequence.num_computed < snapshot.length or sequence.num_computed + most <= snapshot.latest:
            return
        sequence.snapshot = None
        if slot.tenant is None or self._slots.num_reusable(slot, snapshot.length) < snapshot.length:
            return
        target = self._slots.snapshot_target(is_known=snapshot.is_known)
        if target is not None:
            self._fork(slot, target, snapshot.length)
            self._slots.fill(target, slot.tenant, sequence.tokens[: snapshot.length], snapshot.length)
            self._slots.touch(target)
            self._slots.add_followers(target, 2 if snapshot.is_known else 1)

    # --- memory ----------------------------------------------------------------------------------------------------------

    def defragment(self) -> None:
        """Move the sequence of the last slot into a gap if that leaves fewer gaps: in split memory each costs a pass."""
        if not self.traits.is_split or self._forks:
            return
        move = self._slots.best_move()
        if move is not None:
            self._move(*move)

    def evict_history(self) -> Fork | None:
        """Clear the least used history; None when there is none."""
        slot = self._slots.least_used()
        return None if slot is None else self.clear_slot(slot.index)

    def clear_slot(self, index: int) -> Fork:
        """Clear a slot that no sequence holds; return the operation that clears its memory."""
        self._slots.clear(self._slots[index])
        return Fork(index, index, 0)

    def reset(self) -> None:
        """Clear all slots after the memory was cleared."""
        for slot in self._slots:
            self._slots.clear(slot)
        self._forks.clear()

    def check_integrity(self, assigned: list[Sequence]) -> None:
        """Check the invariants that hold between two steps; each of the `assigned` sequences must have a slot."""
        self._slots.check_integrity()
        for slot in self._slots:
            holder = slot.holder
            assert holder is None or holder.slot == slot.index, "the sequence in a slot has another slot"
            assert holder is None or holder in assigned, "a slot holds a released sequence"
            assert holder is None or slot.num_valid == holder.num_computed, "slot and sequence disagree"
        for sequence in assigned:
            assert self._slots[slot_of(sequence)].holder is sequence, "the slot of a sequence holds another one"
            assert sequence.num_computed <= len(sequence.tokens), "computed more than there is"

    def _first_position(self, slot: int) -> int:
        """The first position that a slot will have after the planned copies."""
        for fork in reversed(self._forks):
            if fork.target == slot:
                slot = fork.source
        return self._memory_first_position(slot)

    def _fork(self, source: Slot, target: Slot, length: int) -> None:
        if source is not target or target.num_valid != length:
            self._forks.append(Fork(source.index, target.index, length))
        self._slots.touch(source)

    def _move(self, source: Slot, target: Slot) -> None:
        sequence = source.holder
        assert sequence is not None, "a running slot is held"
        self._fork(source, target, source.num_valid)
        self._slots.fill(target, source.tenant, source.tokens, source.num_valid)
        self._slots.release(source)
        self._slots.hold(target, sequence)
        self._forks.append(self.clear_slot(source.index))


def slot_of(sequence: Sequence) -> int:
    """The slot of a sequence that has one."""
    assert sequence.slot is not None, "a running or paused sequence has a slot"
    return sequence.slot
