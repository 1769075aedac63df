"""Draws of llama.cpp's `top_p` from a large vocabulary, in few passes over the logits.

llama.cpp adds the exponentials one by one, in the order of ids and in single precision, divides each by the sum, and keeps the
likeliest tokens until theirs add up to `top_p`. Additions and divisions are monotone, also when rounded, so the same operations
on bounds of the exponentials give bounds of its results. A draw is given up if it is not the same anywhere between them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import frexp
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.backends.logits import WEIGHT_ERROR, Logits, Sums, Tokens, positions, scratch_mask
from engine.errors import DecodeFailed

Bounds = NDArray[np.complex64]
"""Lower and upper bounds of addends, the real and imaginary parts of complex numbers: so both are added at once."""

PART: Final = 4096  # addends that stay in the cache
_BLOCK: Final = 4096
_NEGLIGIBLE: Final = 1e-5  # of the sum: a plain sum up to there is good enough
_SLACK: Final = 1e-3  # far more than the rounding of a logit, or of a sum of a few exponentials
_LEAST_SUM: Final = 1e-60  # what would be lost in it is 0 in single precision
_NUCLEI: Final = (256, 2048, 1 << 30)  # tokens among which `top_p` is tried
_ERROR: Final = np.float32(1e-6)  # above those of numpy's and of C's exponentials together: 5 units in the last place
_BOUNDS: Final = np.complex64(complex(1 - _ERROR, 1 + _ERROR))
_ROUNDING: Final = 6.1e-8  # above half of the last bit, 2**-24 = 5.96e-8, of a sum that rounding may have enlarged


class _Scratch(threading.local):
    """Arrays of one thread, since rows are sampled side by side, and new memory takes as long as a pass over it."""

    def __init__(self) -> None:
        self.logits = self.ordered = np.empty(0, np.float32)
        self.weights = np.empty(PART, np.float32)
        self.bounds = np.empty(PART, np.complex64)
        self.sums = np.empty(PART, np.complex64)

    def taken(self, row: Logits, tokens: Tokens) -> Logits:
        """The logits of these tokens, valid until the next call."""
        if len(self.logits) < len(row):
            self.logits = np.empty(len(row), np.float32)
        return row.take(tokens, out=self.logits[: len(tokens)], mode="clip")

    def copied(self, logits: Logits) -> Logits:
        """A copy of logits, valid until the next call."""
        if len(self.ordered) < len(logits):
            self.ordered = np.empty(len(logits), np.float32)
        copy = self.ordered[: len(logits)]
        copy[:] = logits
        return copy


_scratch: Final = _Scratch()


@dataclass(frozen=True, slots=True)
class NucleusDraw:
    """A draw after the filters `top_p` and `min_p`, in this order, and a temperature."""

    top_p: float
    min_p: float
    temperature: float

    def __call__(self, row: Logits, random: float) -> int | None:
        """The token for a random number in [0, 1); None if it depends on rounding, or on the order of equal logits.

        Raises DecodeFailed if a logit is not a number.
        """
        maxima = _maxima(row)
        largest = maxima.max()
        if not np.isfinite(largest):
            raise DecodeFailed("The model computed a logit that is not a number.")
        sums = np.cumsum(np.exp(maxima - largest), dtype=np.float64)
        start = int(np.searchsorted(sums, _NEGLIGIBLE * sums[-1]))
        tokens, bound = _addends(row, largest, sums, start)
        bound = max(bound, float(maxima[:start].max(initial=-np.inf)))
        logits = _scratch.taken(row, tokens)
        for low, high in _totals(row[: start * _BLOCK], logits, largest):
            value = self._draw(logits, bound, low, high, random)
            if value is not None:
                equal = np.flatnonzero(logits == value)
                return int(tokens[equal[0]]) if len(equal) == 1 else None
        return None

    def _draw(self, logits: Logits, bound: float, low: float, high: float, random: float) -> np.float32 | None:
        """The logit of the token that is drawn if the sum is between `low` and `high`; None if that is open.

        `logits` are all above `bound`, and some below.
        """
        for number in _NUCLEI:
            ordered = descending(logits, number)
            weights = np.exp(ordered - ordered[0])
            least = np.add.accumulate(weights * (1 - _ERROR) / high)
            if least[-1] >= np.float32(self.top_p):
                break
        else:
            return None
        most = np.add.accumulate(weights * (1 + _ERROR) / low)
        fewest, number = (int(np.searchsorted(sums, np.float32(self.top_p))) + 1 for sums in (most, least))
        if ordered[number - 1] <= bound:
            return None
        if self.min_p > 0:
            limit = float(ordered[0]) + float(np.log(np.float32(self.min_p)))
            error = 1e-6 * (1 + abs(float(ordered[0])) + abs(limit))
            fewest = min(fewest, max(1, int(np.count_nonzero(ordered >= limit + error))))
            number = min(number, max(1, int(np.count_nonzero(ordered >= limit - error))))
        scaled = ordered[:number] / np.float32(self.temperature)
        totals = np.cumsum(np.exp(scaled - scaled[0]), dtype=np.float64)
        error = WEIGHT_ERROR * totals[-1]
        at = int(np.searchsorted(totals, random * totals[-1] + error))
        is_open = at > 0 and totals[at - 1] >= random * totals[fewest - 1] - error
        return None if is_open else ordered[at]


def _maxima(row: Logits) -> Logits:
    """The largest logits of the blocks; the tokens after the last whole one count with it."""
    whole = len(row) - len(row) % _BLOCK
    maxima = row[:whole].reshape(-1, _BLOCK).max(axis=1)
    if whole < len(row):
        maxima[-1] = np.maximum(maxima[-1], row[whole:].max())
    return np.asarray(maxima)


def _addends(row: Logits, largest: np.float32, sums: Sums, start: int) -> tuple[Tokens, float]:
    """The tokens from block `start` on whose exponentials change the sum, and a bound of the logits of the others.

    An addend below half of the last bit of the sum so far changes nothing. That sum is at least the one of `sums` before.
    """
    powers = np.floor(np.log2(np.maximum(sums * (1 - _SLACK), _LEAST_SUM)))
    bounds = np.concatenate([[-np.inf], float(largest) + (powers[:-1] - 24) * np.log(2) - _SLACK])
    found = scratch_mask(len(row))
    found[: start * _BLOCK] = False
    changes = start + 1 + np.flatnonzero(np.diff(bounds[start:]))
    for begin, end in pairwise([start, *changes.tolist(), len(bounds)]):
        part = slice(begin * _BLOCK, end * _BLOCK if end < len(bounds) else None)
        np.greater(row[part], np.float32(bounds[begin]), out=found[part])
    return positions(found), float(bounds[-1])


def _totals(early: Logits, logits: Logits, largest: np.float32) -> Iterator[tuple[float, float]]:
    """Bounds of the sum: first those of any order, which are narrow enough for most draws, then those of the order of ids."""
    before = _plain_sum(early, largest, 0.0, 0.0)
    yield _plain_sum(logits, largest, *before)
    yield sum_in_order(exponentials(logits, largest), *before)


def _plain_sum(logits: Logits, largest: np.float32, low: float, high: float) -> tuple[float, float]:
    """Bounds of the sum that goes on from one between `low` and `high`: an addition rounds by half of the last bit at most."""
    total = 0.0
    for begin in range(0, len(logits), PART):
        part = logits[begin : begin + PART]
        weights = np.subtract(part, largest, out=_scratch.weights[: len(part)])
        total += float(np.add.reduce(np.exp(weights, out=weights)))
    rounding = len(logits) * _ROUNDING * (high + total)
    return low + total * (1 - WEIGHT_ERROR) - rounding, high + total * (1 + WEIGHT_ERROR) + rounding


def exponentials(logits: Logits, largest: np.float32) -> Iterator[Bounds]:
    """Bounds of the exponentials, relative to the largest logit, in parts."""
    for begin in range(0, len(logits), PART):
        part = logits[begin : begin + PART]
        weights = np.subtract(part, largest, out=_scratch.weights[: len(part)])
        yield np.multiply(np.exp(weights, out=weights), _BOUNDS, out=_scratch.bounds[: len(part)])


def sum_in_order(parts: Iterable[Bounds], low: float = 0.0, high: float = 0.0) -> tuple[float, float]:
    """Bounds of the sum that goes on from one between `low` and `high`, one addend after the other; it changes the parts.

    While the sum is between two powers of two, its last bit is the same: then each addend counts as it is rounded to that bit.
    """
    total = np.complex64(complex(low, high))
    for part in parts:
        _, exponent = frexp(float(total.imag) + float(np.add.reduce(part).imag) * (1 + _SLACK))
        if total.real and frexp(float(total.real))[1] == exponent:
            power = np.complex64(complex(1, 1) * 2.0 ** (exponent - 1))
            part += power
            part -= power
            total += np.add.reduce(part)
        else:
            part[0] += total
            total = np.add.accumulate(part, out=_scratch.sums[: len(part)])[-1]
    return float(total.real), float(total.imag)


def descending(logits: Logits, number: int) -> Logits:
    """So many of the largest logits, the largest first; valid until the next call."""
    ordered = _scratch.copied(logits)
    if number < len(ordered):
        ordered.partition(len(ordered) - number)
        ordered = ordered[len(ordered) - number :]
    ordered.sort()
    return ordered[::-1]
