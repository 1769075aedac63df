"""Step cost: seconds of a step by its size, learned from the steps that an engine computes.

Two curves add up: one over the rows of logits, and one over the tokens that give none, which are those of prompts and forced
ones. Neither is a straight line: on a CPU two rows may take four times as long as one, and sixteen hardly longer than eight;
on a GPU sixteen take as long as one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final, NamedTuple

from engine.scheduler.step import StepEntry

_WEIGHT: Final = 0.25  # of a new measurement
OUTLIER: Final = 3.0  # times the usual: more is something else that used the device


class StepSize(NamedTuple):
    """Rows of logits in a step, and its tokens that give none."""

    rows: int = 0
    others: int = 0

    def plus(self, more: StepSize) -> StepSize:
        """The size of both together."""
        return StepSize(self.rows + more.rows, self.others + more.others)


def size_of(entries: Iterable[StepEntry]) -> StepSize:
    """The size of a step of these entries."""
    rows = tokens = 0
    for entry in entries:
        rows += entry.num_rows
        tokens += len(entry.tokens)
    return StepSize(rows, tokens - rows)


class _Curve:
    """Seconds by size. Sizes of one bit length share a point, their weighted mean; between points the curve is straight."""

    def __init__(self) -> None:
        self._points: dict[int, tuple[float, float]] = {}
        self._sorted: list[tuple[float, float]] = []
        self._guessed: set[int] = set()

    def has(self, size: int) -> bool:
        """Was about this size measured, or at least seen as a part of a step?"""
        return size.bit_length() in self._points or size.bit_length() in self._guessed

    def guess(self, size: int, seconds: float) -> None:
        """Note a size whose seconds are not known exactly; they count while there is no measurement at all."""
        if size:
            self._guessed.add(size.bit_length())
            if not self._points:
                self._sorted = [(float(size), seconds)]

    def record(self, size: int, seconds: float) -> None:
        """Add a measurement."""
        if not size:
            return
        point = self._points.get(size.bit_length())
        if point is None:
            new = float(size), seconds
        else:
            seconds = min(seconds, OUTLIER * point[1])
            new = point[0] + _WEIGHT * (size - point[0]), point[1] + _WEIGHT * (seconds - point[1])
        self._points[size.bit_length()] = new
        self._sorted = sorted(self._points.values())

    def seconds(self, size: int) -> float:
        """Seconds of a size: in proportion to the nearest point outside of all; 0 while nothing was measured."""
        points = self._sorted
        if not size or not points:
            return 0.0
        index = bisect_left(points, (size, 0.0))
        if index in (0, len(points)):
            at, seconds = points[min(index, len(points) - 1)]
            return seconds * size / at
        (left, before), (right, after) = points[index - 1], points[index]
        return before + (after - before) * (size - left) / (right - left)


class StepCost:
    """The measured seconds of steps."""

    def __init__(self) -> None:
        self._rows = _Curve()
        self._others = _Curve()
        self.is_measured = False

    def begin_with(self, rows: Iterable[tuple[int, float]], prompts: Iterable[tuple[int, float]]) -> None:
        """Take over seconds that were measured before: of steps by their rows, and of prompts by their tokens."""
        for size, seconds in rows:
            self.record(StepSize(size), seconds)
        for size, seconds in prompts:
            self.record(StepSize(1, size - 1), seconds)

    def record(self, size: StepSize, seconds: float) -> None:
        """Add a measured step."""
        self.is_measured = True
        if not size.others:
            self._rows.record(size.rows, seconds)
            return
        self._rows.guess(size.rows, seconds * size.rows / sum(size))
        self._others.record(size.others, max(0.0, seconds - self._rows.seconds(size.rows)))

    def seconds(self, size: StepSize) -> float:
        """Expected seconds of a step."""
        return self._rows.seconds(size.rows) + self._others.seconds(size.others)

    def knows(self, size: StepSize) -> bool:
        """Was a step of about these rows measured?"""
        return not size.rows or self._rows.has(size.rows)

    def tokens_within(self, seconds: float, most: int) -> int | None:
        """Prompt tokens, a power of two or `most`, that take no longer than `seconds`; None while no prompt was measured."""
        if not self._others.seconds(1):
            return None
        number = 1
        while number < most and self._others.seconds(min(2 * number, most)) <= seconds:
            number *= 2
        return min(number, most)
