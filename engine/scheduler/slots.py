"""Slots: the KV lanes of the model's memory, their contents, and the search for the longest cached prefix of a prompt.

A slot is free (its history can still be reused), or held by a running or paused sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from engine.scheduler.sequence import Sequence

_BLOCK: Final = 64
_SHORT_TAIL: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTraits:
    """Operations that the memory of a model allows.

    `can_trim`: the end of a history can be removed; recurrent models cannot, so that only a whole history can be reused.
    `window`: tokens that the model looks back at most, 0 for everything; older positions may be gone (see `first_position`).
    `is_split`: each slot has a stream of its own. Then a copy has a cost, and neighbouring slots are computed together, while
    a gap between them costs one more pass.
    """

    can_trim: bool = True
    window: int = 0
    is_split: bool = False

    @property
    def min_copy_tokens(self) -> int:
        """Tokens that a copy must save to be worth it; in unified memory a copy is free."""
        return 16 if self.is_split else 1


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
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    num_valid: int = 0
    tenant: str | None = None
    holder: Sequence | None = None
    used_at: int = 0

    def clear(self) -> None:
        """Drop the history."""
        self.tokens, self.num_valid, self.tenant = [], 0, None


class SlotTable:
    """All slots. `first_position(slot)` is the first position that the memory of a slot still has: 0 unless a window has passed
    it.
    """

    def __init__(self, number: int, traits: MemoryTraits, first_position: Callable[[int], int]) -> None:
        self._slots = [Slot(index) for index in range(number)]
        self._traits = traits
        self._first_position = first_position

    def __getitem__(self, index: int) -> Slot:
        return self._slots[index]

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def free(self) -> list[Slot]:
        """The slots that no sequence holds."""
        return [slot for slot in self._slots if slot.holder is None]

    def num_reusable(self, slot: Slot, sequence: Sequence) -> int:
        """Tokens of a prompt that this slot saves; the last token is always computed."""
        if slot.tenant != sequence.tenant or not slot.num_valid or sequence.wants_prompt_logprobs:
            return 0
        most = min(slot.num_valid, len(sequence.tokens) - 1)
        length = common_prefix(slot.tokens, sequence.tokens, most)
        if not self._traits.can_trim:
            return length if length == slot.num_valid else 0
        if self._traits.window and length < slot.num_valid:
            first_position = self._first_position(slot.index)
            return length if first_position == 0 or first_position <= length - self._traits.window else 0
        return length

    def choose(self, sequence: Sequence, running: set[int]) -> tuple[Slot, Slot, int] | None:
        """Choose a slot for a sequence: (source, target, length) as in `Fork`; None when no slot is free.

        A free slot that itself holds the match is trimmed and used in place, when the rest that gets lost is short; else
        the match is copied to the free slot with the lowest eviction cost.
        """
        free = self.free()
        if not free:
            return None
        lengths = [self.num_reusable(slot, sequence) for slot in self._slots]
        longest = max(lengths)
        if longest < self._traits.min_copy_tokens:
            target = min(free, key=lambda slot: self._eviction_cost(slot, running))
            return target, target, 0
        good = [slot for slot in free if longest - lengths[slot.index] < self._traits.min_copy_tokens]
        here = min(good, key=lambda slot: self._eviction_cost(slot, running), default=None)
        if here is not None and (len(free) == 1 or self._is_short_tail(here.num_valid - lengths[here.index], longest)):
            return here, here, lengths[here.index]
        source = self._slots[lengths.index(longest)]
        others = [slot for slot in free if slot is not source] or free
        return source, min(others, key=lambda slot: self._eviction_cost(slot, running)), longest

    def _is_short_tail(self, tail: int, used: int) -> bool:
        """May the tokens after the match be lost? A state that cannot be trimmed is lost as soon as it goes on."""
        return self._traits.can_trim and tail <= max(_SHORT_TAIL, used)

    def _eviction_cost(self, slot: Slot, running: set[int]) -> tuple[int, int, bool, int, int]:
        """The cost of using this slot for another sequence, as a sort key.

        In split memory the first criterion is how scattered the running sequences would be: gaps are filled before the ends.
        """
        runs = span = 0
        if self._traits.is_split:
            together = running | {slot.index}
            runs, span = count_runs(together), max(together) - min(together)
        return runs, span, slot.num_valid > 0, slot.used_at, slot.index


def common_prefix(one: list[int], other: list[int], most: int) -> int:
    """Length of the common prefix, at most `most`; compares blocks of tokens, which runs at the speed of C."""
    at = 0
    while at + _BLOCK <= most and one[at : at + _BLOCK] == other[at : at + _BLOCK]:
        at += _BLOCK
    while at < most and one[at] == other[at]:
        at += 1
    return at


def count_runs(slots: set[int]) -> int:
    """Number of runs of neighbouring slots: each is a pass of its own in split memory."""
    return sum(slot - 1 not in slots for slot in slots)
