"""Waiting queue: sequences without a slot, in the order of admission.

Chat comes before batch. Batch sequences of one group come together, and groups in order of arrival, so that the shared prefix
of a group is used up before the next group evicts it. A sequence that lost its slot returns to its old position.
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
    """Sequences by position; a group keeps the position of its first member until its last member finishes."""

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
        """Does a chat sequence wait?"""
        return bool(self._waiting) and self._waiting[0][1].priority is Priority.CHAT

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence; it keeps its position until `finish`."""
        sequence.arrival = next(self._arrivals)
        group = sequence.client, sequence.group
        self._group_positions.setdefault(group, sequence.arrival)
        self._group_sizes[group] += 1
        self.requeue(sequence)

    def requeue(self, sequence: Sequence) -> None:
        """Put a sequence (back) at its position."""
        bisect.insort(self._waiting, (self._position(sequence), sequence), key=_position_of)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence that gets a slot or was cancelled."""
        index = bisect.bisect_left(self._waiting, self._position(sequence), key=_position_of)
        assert self._waiting[index][1] is sequence, "the sequence does not wait"
        del self._waiting[index]

    def finish(self, sequence: Sequence) -> None:
        """Remove a finished sequence from its group; drop the group when it is empty."""
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
