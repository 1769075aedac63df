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

_Position = tuple[int, int, int]
_Group = tuple[str, str]


class WaitingQueue:
    """Ordered by turn; a group's turn is that of its first member for as long as any of it is known here."""

    def __init__(self) -> None:
        self._arrivals = itertools.count(1)
        self._waiting: list[tuple[_Position, Sequence]] = []
        self._group_positions: dict[_Group, int] = {}
        self._group_sizes: Counter[_Group] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for _, sequence in self._waiting)

    @property
    def has_chat(self) -> bool:
        """Does anybody wait who comes before batches?"""
        return bool(self._waiting) and self._waiting[0][1].priority is Priority.CHAT

    def add(self, sequence: Sequence) -> None:
        """A new sequence; it has a turn from now until `leave`."""
        sequence.arrival = next(self._arrivals)
        group = sequence.client, sequence.group
        self._group_positions.setdefault(group, sequence.arrival)
        self._group_sizes[group] += 1
        self.requeue(sequence)

    def requeue(self, sequence: Sequence) -> None:
        """Wait (again) at its old turn."""
        bisect.insort(self._waiting, (self._position(sequence), sequence), key=_position_of)

    def remove(self, sequence: Sequence) -> None:
        """It waits no longer."""
        index = bisect.bisect_left(self._waiting, self._position(sequence), key=_position_of)
        assert self._waiting[index][1] is sequence, "only who waits can be taken"
        del self._waiting[index]

    def finish(self, sequence: Sequence) -> None:
        """It is over with; its group's turn goes with its last member."""
        group = sequence.client, sequence.group
        self._group_sizes[group] -= 1
        if not self._group_sizes[group]:
            del self._group_sizes[group], self._group_positions[group]

    def _position(self, sequence: Sequence) -> _Position:
        if sequence.priority is Priority.CHAT:
            return 0, sequence.arrival, sequence.arrival
        position = self._group_positions[sequence.client, sequence.group] if sequence.group else sequence.arrival
        return 1, position, sequence.arrival


def _position_of(item: tuple[_Position, Sequence]) -> _Position:
    return item[0]
