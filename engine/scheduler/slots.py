"""Slots: the KV lanes of the model's memory, their contents, and which of them a new sequence gets.

A slot is free (its history can still be reused), or held by a running or paused sequence. Sets of slots are bit masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from engine.scheduler.prefix_index import Match, PrefixIndex, members
from engine.scheduler.sequence import Sequence

_SHORT_TAIL: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTraits:
    """Operations that the memory of a model allows.

    `can_trim`: the end of a history can be removed; recurrent models cannot, so that only a whole history can be reused.
    `window`: tokens that the model looks back at most, 0 for everything; older positions may be gone (see `first_position`).
    `slack`: tokens beyond the window that a slot keeps at least. `is_split`: each slot has a stream of its own. Then a copy has a
    cost, and neighbouring slots are computed together, while a gap between them costs one more pass. `can_change_layout`: the
    decoder can go on with an empty memory that is split, or is not.
    """

    can_trim: bool = True
    window: int = 0
    slack: int = 0
    is_split: bool = False
    can_change_layout: bool = False

    @property
    def min_copy_tokens(self) -> int:
        """Tokens that a copy must save to be worth it; in unified memory a copy is free."""
        return 16 if self.is_split else 1

    @property
    def forgets(self) -> bool:
        """Does a history that goes on lose the places where it can be continued otherwise?"""
        return self.window > 0 or not self.can_trim


@dataclass(frozen=True, slots=True)
class Fork:
    """After a fork, slot `target` holds exactly the first `length` tokens of slot `source`.

    With `source == target` the rest is trimmed; a `length` of 0 clears the target.
    """

    source: int
    target: int
    length: int


@dataclass(slots=True)
class Slot:
    """The first `num_valid` of `tokens` are in memory, computed for `tenant`.

    `tenant` is None in an empty slot, and where positions no longer match the tokens. `holder` runs or is paused in this slot.
    `num_followers` counts the prompts that went on from the end of this history in other slots: after the first one, it is
    needed only if another prompt diverges here.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    num_valid: int = 0
    tenant: str | None = None
    holder: Sequence | None = None
    num_followers: int = 0


class SlotTable:
    """All slots. `first_position(slot)` is the first position that the memory of a slot still has: 0 unless a window has passed
    it. `num_spare` of the slots are beyond those of running sequences.
    """

    def __init__(self, number: int, num_spare: int, traits: MemoryTraits, first_position: Callable[[int], int]) -> None:
        self._slots = [Slot(index) for index in range(number)]
        self._num_spare = num_spare
        self._traits = traits
        self._first_position = first_position
        self._index = PrefixIndex()
        self._free = dict.fromkeys(range(number))  # the least recently used first
        self._free_mask = self._empty = (1 << number) - 1
        self._superseded = 0  # free slots with one follower
        self.running = 0

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    # --- contents ------------------------------------------------------------------------------------------------------

    def fill(self, slot: Slot, tenant: str | None, tokens: list[int], num_valid: int) -> None:
        """Set the contents of a slot. Without a tenant, nothing matches them."""
        slot.tenant, slot.tokens, slot.num_valid, slot.num_followers = tenant, tokens, num_valid, 0
        self._superseded &= ~(1 << slot.index)
        if num_valid or tokens:
            self._empty &= ~(1 << slot.index)
        else:
            self._empty |= 1 << slot.index
        if tenant is None:
            self._index.remove(slot.index)
        else:
            self._index.put(slot.index, tenant, tokens)

    def clear(self, slot: Slot) -> None:
        """Drop the history of a slot."""
        self.fill(slot, None, [], 0)

    def hold(self, slot: Slot, sequence: Sequence) -> None:
        """Give a slot to a sequence that runs from now on."""
        slot.holder, sequence.slot = sequence, slot.index
        self._free.pop(slot.index, None)
        self._free_mask &= ~(1 << slot.index)
        self.running |= 1 << slot.index

    def release(self, slot: Slot) -> None:
        """Take a slot from its sequence."""
        slot.holder = None
        self._free[slot.index] = None
        self._free_mask |= 1 << slot.index
        self.running &= ~(1 << slot.index)

    def touch(self, slot: Slot) -> None:
        """Record that the history of a slot was used."""
        if slot.index in self._free:
            del self._free[slot.index]
            self._free[slot.index] = None

    def add_followers(self, slot: Slot, number: int) -> None:
        """Record prompts that go on from the end of a history in other slots."""
        slot.num_followers += number
        if slot.num_followers == 1:
            self._superseded |= 1 << slot.index
        else:
            self._superseded &= ~(1 << slot.index)

    # --- search --------------------------------------------------------------------------------------------------------

    def search(self, sequence: Sequence) -> list[Match]:
        """Find the slots that begin like a prompt, the longest match first; its last token is always computed."""
        if sequence.wants_prompt_logprobs:
            return []
        return self._index.search(sequence.tenant, sequence.tokens, len(sequence.tokens) - 1)

    def longest(self, matches: list[Match]) -> tuple[int, Slot | None]:
        """The number of tokens that the best slot saves, and that slot."""
        best, best_slot = 0, None
        for match in matches:
            if match.length <= best:
                break
            for index in members(match.mask):
                length = self.num_reusable(self._slots[index], match.length)
                if length > best:
                    best, best_slot = length, self._slots[index]
                    if length == match.length:
                        break
        return best, best_slot

    def num_reusable(self, slot: Slot, length: int) -> int:
        """Tokens that a slot saves for a prompt with which it shares `length`."""
        length = min(length, slot.num_valid)
        return length if length == slot.num_valid or self.can_cut(slot, length) else 0

    def can_cut(self, slot: Slot, length: int) -> bool:
        """Can the memory of a slot be cut back to a length?"""
        if not self._traits.window or not self._traits.can_trim:
            return self._traits.can_trim
        return self._first_position(slot.index) <= max(0, length - self._traits.window + 1)

    def check_integrity(self) -> None:
        """Check that the masks describe the slots."""
        for slot in self._slots:
            bit = 1 << slot.index
            assert slot.num_valid <= len(slot.tokens), "more memory than tokens"
            assert (slot.holder is None) == bool(self._free_mask & bit) == (slot.index in self._free), "free and held"
            assert bool(self._empty & bit) == (not slot.tokens), "a mask is wrong about empty slots"
            assert not self._superseded & bit or slot.num_followers == 1, "a mask is wrong about followers"
            assert not self.running & self._free_mask, "a free slot runs"

    # --- choice --------------------------------------------------------------------------------------------------------

    def choose(self, sequence: Sequence, matches: list[Match]) -> tuple[Slot, Slot, int] | None:
        """Choose a slot for a sequence: (source, target, length) as in `Fork`; None when no slot is free.

        A free slot that itself holds the match is trimmed and used in place, if little gets lost; else the match is copied to the
        free slot with the lowest eviction cost.
        """
        if not self._free_mask:
            return None
        longest, source = self.longest(matches)
        if source is None or longest < self._traits.min_copy_tokens:
            target = self._cheapest(self._free_mask)
            return target, target, 0
        here, length = self._cheapest_match(matches, longest - self._traits.min_copy_tokens)
        if here is not None and self._may_go_on(here, length, longest, len(sequence.tokens)):
            return here, here, length
        others = self._free_mask & ~(1 << source.index) or self._free_mask
        return source, self._cheapest(others), longest

    def snapshot_target(self, *, is_known: bool) -> Slot | None:
        """A free slot for a copy of a place, away from the slots that are assigned first; None if it would cost too much.

        `is_known`: prompts have diverged at this place already.
        """
        if empty := self._free_mask & self._empty:
            return self._slots[empty.bit_length() - 1]
        if self._free and (is_known or self._has_room_to_keep(self._free_mask)):
            return self._slots[self._oldest(self._free_mask & self._superseded or self._free_mask)]
        return None

    def least_used(self) -> Slot | None:
        """The history to evict first; None if there is none."""
        histories = self._free_mask & ~self._empty
        return self._slots[self._oldest(histories & self._superseded or histories)] if histories else None

    def best_move(self) -> tuple[Slot, Slot] | None:
        """The last running slot and a free one, if a move leaves fewer gaps between the running ones."""
        runs = _count_runs(self.running)
        if runs < 2:
            return None
        last = self.running.bit_length() - 1
        rest = self.running & ~(1 << last)
        moves = ((_count_runs(rest | 1 << index), index) for index in members(self._free_mask))
        runs_then, target = min(moves, default=(runs, last))
        return (self._slots[last], self._slots[target]) if runs_then < runs else None

    def _cheapest_match(self, matches: list[Match], more_than: int) -> tuple[Slot | None, int]:
        """The free slot with the lowest eviction cost of those that save more tokens than this, and their number."""
        good = 0
        for match in matches:
            if match.length > more_than:
                good |= match.mask & self._free_mask
        while good:
            slot = self._cheapest(good)
            length = next(match.length for match in matches if match.mask >> slot.index & 1)
            length = self.num_reusable(slot, length)
            if length > more_than:
                return slot, length
            good &= ~(1 << slot.index)
        return None, 0

    def _may_go_on(self, here: Slot, length: int, longest: int, num_tokens: int) -> bool:
        """May a sequence go on in a slot that holds its match, so that the history gets lost behind it?

        A memory that forgets also loses the place itself. So it is kept, unless that would cost a history that is worth more.
        """
        others = self._free_mask & ~(1 << here.index)
        if not others:
            return True
        if here.num_valid - length > max(_SHORT_TAIL, longest):
            return False
        if not self._traits.forgets or num_tokens <= length + self._traits.slack:
            return True
        return here.num_followers == 0 and not self._has_room_to_keep(others)

    def _has_room_to_keep(self, slots: int) -> bool:
        """May one of these slots keep a place where nothing has diverged yet? There are as many such places as spare slots."""
        return bool(slots & (self._empty | self._superseded)) or self._superseded.bit_count() < self._num_spare

    def _cheapest(self, slots: int) -> Slot:
        """The free slot with the lowest cost of using it for another sequence: empty, superseded, or least recently used.

        In split memory the first criterion is how scattered the running sequences would be: gaps are filled before the ends.
        """
        if self._traits.is_split and self.running:
            slots = _least_scattered(slots, self.running)
        if empty := slots & self._empty:
            return self._slots[(empty & -empty).bit_length() - 1]
        return self._slots[self._oldest(slots & self._superseded or slots)]

    def _oldest(self, slots: int) -> int:
        if not slots & (slots - 1):
            return slots.bit_length() - 1
        return next(index for index in self._free if slots >> index & 1)


def _least_scattered(slots: int, running: int) -> int:
    """Those of some free slots that leave the fewest runs of neighbours with the running ones, and then the shortest span."""
    below, above = running << 1, running >> 1
    slots = slots & below & above or slots & (below | above) or slots
    low, high = (running & -running).bit_length() - 1, running.bit_length() - 1
    if inside := slots & ((1 << high) - (1 << low)):
        return inside
    distances = [low - index if index < low else index - high for index in members(slots)]
    nearest = min(distances)
    return sum(1 << index for index, far in zip(members(slots), distances, strict=True) if far == nearest)


def _count_runs(slots: int) -> int:
    """Number of runs of neighbouring slots: each is a pass of its own in split memory."""
    return (slots & ~(slots << 1)).bit_count()
