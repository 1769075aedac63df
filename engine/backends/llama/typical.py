"""Draws of llama.cpp's `typical_p` from a large vocabulary.

The surprise of a token is -log(p). llama.cpp keeps the tokens whose surprise is closest to the entropy, its mean, until their
probabilities add up to more than `typical_p`. Among tokens sorted by logit they are neighbours, so only these are sorted again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from engine.backends.llama.nucleus import PART, Bounds, descending, exponentials, sum_in_order
from engine.backends.logits import Logits, Sums, scratch_mask
from engine.errors import DecodeFailed

_DEPTHS: Final = (22.0, 45.0)  # below the largest logit: where tokens may be too unlikely to count in the entropy
_WIDTHS: Final = (512, 8192, 1 << 30)  # tokens on each side of the entropy that are tried
_ERROR: Final = 3e-6  # of a probability and of its logarithm, relative, without the error of the sum
_LOG_ERROR: Final = 1e-5  # of a logarithm down to -64, and of its difference from the entropy
_LOST: Final = 2**-26  # of a sum in single precision: less is lost in it
_DRAW_ERROR: Final = 1e-5  # of a sum of weights
_MOST: Final = 80.0  # larger exponents would overflow


@dataclass(frozen=True, slots=True)
class _Surprise:
    """That of a logit is `origin` less the logit; `most` or more is that of tokens left out. All are within the `error`."""

    origin: float
    most: float
    entropy: float
    error: float


@dataclass(frozen=True, slots=True)
class TypicalDraw:
    """A draw after the filter `typical_p` and a temperature."""

    typical_p: float
    temperature: float

    def __call__(self, row: Logits, random: float) -> int | None:
        """The token for a random number in [0, 1); None if it depends on rounding, or on the order of equal logits.

        Raises DecodeFailed if a logit is not a number.
        """
        largest = row.max()
        if not np.isfinite(largest):
            raise DecodeFailed("The model computed a logit that is not a number.")
        for depth in _DEPTHS:
            found = np.greater(row, largest - np.float32(depth), out=scratch_mask(len(row)))
            logits = descending(row, int(np.count_nonzero(found)))
            surprise = _surprise(logits, largest, depth)
            if surprise is not None:
                value = self._draw(logits, surprise, random)
                equal = [] if value is None else np.flatnonzero(row == value).tolist()
                return equal[0] if len(equal) == 1 else None
        return None

    def _draw(self, logits: Logits, surprise: _Surprise, random: float) -> np.float32 | None:
        """The logit of the token that is drawn; None if that is open."""
        middle = len(logits) - int(np.searchsorted(logits[::-1], surprise.origin - surprise.entropy))
        for width in _WIDTHS:
            window = logits[max(0, middle - width) : middle + width]
            each = surprise.origin - window.astype(np.float64)
            scores = np.abs(each - surprise.entropy)
            left = scores[0] if middle > width else np.inf
            right = scores[-1] if middle + width < len(logits) else abs(surprise.most - surprise.entropy)
            order = np.argsort(scores)
            scores = scores[order]
            totals = np.cumsum(np.exp(-each[order]))
            error = surprise.error + len(window) * 2**-24
            first = int(np.searchsorted(totals * (1 + error), np.float32(self.typical_p), side="right"))
            last = int(np.searchsorted(totals * (1 - error), np.float32(self.typical_p), side="right"))
            if last < len(scores) and scores[last] + 4 * surprise.error < min(left, right):
                return self._draw_of(window[order], scores, first, last, 2 * surprise.error, random)
        return None

    def _draw_of(
        self, logits: Logits, scores: Sums, first: int, last: int, apart: float, random: float
    ) -> np.float32 | None:
        """Draw from the tokens up to number `first` to `last` in the order of scores; nearer than `apart` it is not certain."""
        fewest = int(np.searchsorted(scores, scores[first] - apart))
        number = int(np.searchsorted(scores, scores[last] + apart, side="right"))
        if number == fewest + 1:
            fewest = number  # the only token that may be the last one
        logits, scores = logits[:number], scores[:number]
        scaled = logits / np.float32(self.temperature)
        weights = np.exp(np.minimum(scaled - scaled[: max(1, fewest)].max(), _MOST), dtype=np.float64)
        totals = np.concatenate([[0.0], np.cumsum(weights)])
        error = _DRAW_ERROR * totals[-1]
        least, most = random * totals[fewest] - error, random * totals[-1] + error
        at = int(np.searchsorted(totals[1:], most))
        if at == number:
            return None
        before = int(np.searchsorted(scores, scores[at] - apart))
        behind = int(np.searchsorted(scores, scores[at] + apart, side="right"))
        is_reached = totals[before] + weights[at] >= most
        is_first = behind == 1 or totals[behind] - weights[at] < least
        return logits[at] if is_reached and is_first else None


def _surprise(logits: Logits, largest: np.float32, depth: float) -> _Surprise | None:
    """That of tokens whose logits descend to `depth` below the largest; None if those below count in the entropy."""
    low, high = sum_in_order(exponentials(logits, largest))
    log_total, error = float(np.log(high)), high / low - 1
    least, greatest = sum_in_order(_terms(logits, largest, log_total, error + _ERROR))
    most = log_total + depth
    if most * np.exp(-most) >= least * _LOST:
        return None
    half = (greatest - least) / 2
    return _Surprise(float(largest) + log_total, most, least + half, half + error + _LOG_ERROR)


def _terms(logits: Logits, largest: np.float32, log_total: float, error: float) -> Iterator[Bounds]:
    """Bounds of the parts of the entropy; the relative error of a probability, which is that of its logarithm, is given."""
    for begin in range(0, len(logits), PART):
        surprise = (largest - logits[begin : begin + PART]) + np.float32(log_total)
        bounds = surprise * np.complex64(complex(1 - error, 1 + error)) + np.complex64(complex(-error, error))
        yield bounds * np.exp(-surprise)
