"""The memory of the fake: a list of tokens for each slot, and the positions that a window has left of it.

It checks each operation, so a wrong reuse fails a test instead of changing an answer.
"""

from __future__ import annotations

from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import Shift, StepEntry


class FakeMemory:
    """The tokens of all slots. With a window, a slot keeps those that the first token of an entry needs, and the last `window +
    slack` ones.
    """

    def __init__(self, num_slots: int, traits: MemoryTraits) -> None:
        self._traits = traits
        self._tokens: list[list[int]] = [[] for _ in range(num_slots)]
        self._first = [0] * num_slots

    def __getitem__(self, slot: int) -> list[int]:
        return self._tokens[slot]

    @property
    def num_held(self) -> int:
        """Tokens of all slots."""
        return sum(map(len, self._tokens))

    def first_position(self, slot: int) -> int:
        """The first position that is left."""
        return self._first[slot]

    def fork(self, fork: Fork) -> None:
        """Copy or cut a list; what a window has lost stays lost."""
        source = self._tokens[fork.source]
        assert fork.length <= len(source), "a fork of more tokens than the slot holds"
        assert self._traits.can_trim or fork.length in (0, len(source)), "this memory cannot be trimmed"
        self._tokens[fork.target] = source[: fork.length]
        self._first[fork.target] = self._first[fork.source] if fork.length else 0

    def shift(self, shift: Shift) -> None:
        """Drop tokens from the middle."""
        del self._tokens[shift.slot][shift.keep : shift.keep + shift.discard]

    def append(self, entry: StepEntry) -> None:
        """Compute the tokens of an entry, which needs the positions in the window of its first one."""
        tokens, window = self._tokens[entry.slot], self._traits.window
        assert len(tokens) == entry.start, "an entry does not start at the end of its slot"
        if window:
            assert self._first[entry.slot] <= max(0, entry.start - window + 1), "the window of an entry has gaps"
        tokens.extend(entry.tokens)
        if window:
            kept = min(entry.start - window + 1, len(tokens) - window - self._traits.slack)  # at least, as in llama.cpp
            self._first[entry.slot] = max(self._first[entry.slot], kept)

    def cut(self, slot: int, number: int) -> None:
        """Drop the last tokens: drafts that were wrong."""
        if number:
            del self._tokens[slot][-number:]
