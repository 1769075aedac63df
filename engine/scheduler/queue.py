"""Sequences that wait for a slot, in the order in which they should get one.

Chat comes before batch. Batch sequences of one group come together, groups in order of arrival, so that a group's shared
text is used up before the next group's takes its place. What was running before and lost its slot keeps its old turn.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator

from engine.scheduler.sequence import Sequence
from engine.types import Priority

_Turn = tuple[int, int, int]
_Group = tuple[str, str]


class WaitingQueue:
    """Ordered by turn; a group's turn is that of its first member for as long as any of it is known here."""

    def __init__(self) -> None:
        self._arrivals = itertools.count(1)
        self._waiting: list[tuple[_Turn, Sequence]] = []
        self._group_turns: dict[_Group, int] = {}
        self._group_sizes: Counter[_Group] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for _, sequence in self._waiting)

    @property
    def has_chat(self) -> bool:
        """Does anybody wait who comes before batches?"""
        return bool(self._waiting) and self._waiting[0][1].priority is Priority.CHAT

    def arrive(self, sequence: Sequence) -> None:
        """A new sequence; it has a turn from now until `leave`."""
        sequence.arrival = next(self._arrivals)
        group = sequence.client, sequence.group
        self._group_turns.setdefault(group, sequence.arrival)
        self._group_sizes[group] += 1
        self.put_back(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Wait (again) at its old turn."""
        bisect.insort(self._waiting, (self._turn(sequence), sequence), key=_turn_of)

    def take(self, sequence: Sequence) -> None:
        """It waits no longer."""
        at = bisect.bisect_left(self._waiting, self._turn(sequence), key=_turn_of)
        assert self._waiting[at][1] is sequence, "only who waits can be taken"
        del self._waiting[at]

    def leave(self, sequence: Sequence) -> None:
        """It is over with; its group's turn goes with its last member."""
        group = sequence.client, sequence.group
        self._group_sizes[group] -= 1
        if not self._group_sizes[group]:
            del self._group_sizes[group], self._group_turns[group]

    def _turn(self, sequence: Sequence) -> _Turn:
        if sequence.priority is Priority.CHAT:
            return 0, sequence.arrival, sequence.arrival
        turn = self._group_turns[sequence.client, sequence.group] if sequence.group else sequence.arrival
        return 1, turn, sequence.arrival


def _turn_of(item: tuple[_Turn, Sequence]) -> _Turn:
    return item[0]
