"""What a sampler computes of a row of logits, in few passes: a row of 262,144 tokens is 1 MiB, and each pass takes 15 to 150 us.

All of it is exact: where single precision could decide something else than the plain computation, `draw` gives up.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.errors import DecodeFailed

Logits = NDArray[np.float32]
Tokens = NDArray[np.intp]

_GROUPS: Final = 4096
_BLOCK: Final = 32_768  # tokens whose exponentials stay in the cache while they are added
_LEAST: Final = np.finfo(np.float32).min
WEIGHT_ERROR: Final = (
    2e-6  # of a sum of exponentials: four times the largest error of numpy's, 4 units in their last place
)


class _Scratch(threading.local):
    """Exponentials of one row, since rows are sampled side by side."""

    def __init__(self) -> None:
        self.weights = np.empty(0, np.float32)

    def of(self, size: int) -> Logits:
        if self.weights.size < size:
            self.weights = np.empty(size, np.float32)
        return self.weights[:size]


_scratch: Final = _Scratch()


def best_token(row: Logits) -> int:
    """The token with the largest logit, the first of equals. Raises DecodeFailed if that is not a finite number."""
    best = int(row.argmax())
    if not np.isfinite(row[best]):
        raise DecodeFailed("The model computed a logit that is not a number.")
    return best


def best_tokens(rows: Logits) -> list[int]:
    """The same for each row."""
    best = rows.argmax(axis=1)
    if not np.isfinite(rows[np.arange(len(rows)), best]).all():
        raise DecodeFailed("The model computed a logit that is not a number.")
    tokens: list[int] = best.tolist()
    return tokens


def top_tokens(row: Logits, number: int) -> Tokens:
    """The tokens whose logits are at least the `number`-th largest, in the order of their ids.

    They are more than `number` if there are ties at the bound, and fewer if the others are -inf. Token t is in group t % 4096:
    at least `number` logits are not below the `number`-th largest maximum of a group, so other groups need no look.
    """
    number = min(number, len(row))
    if len(row) < 4 * _GROUPS or number > _GROUPS // 8:
        return _not_below(row, number)
    whole = len(row) - len(row) % _GROUPS
    maxima = row[:whole].reshape(-1, _GROUPS).max(axis=0)
    rest = row[whole:]
    np.maximum(maxima[: len(rest)], rest, out=maxima[: len(rest)])
    columns = _not_below(maxima, number)
    tokens = (np.arange(0, len(row), _GROUPS)[:, None] + columns).reshape(-1)
    if len(rest):
        tokens = tokens[tokens < len(row)]
    return np.asarray(tokens[_not_below(row[tokens], number)])


def _not_below(values: Logits, number: int) -> Tokens:
    if number >= len(values):
        return np.flatnonzero(values >= _LEAST)
    bound = np.partition(values, len(values) - number)[len(values) - number]
    return np.flatnonzero(values >= max(bound, _LEAST))


def log_total(row: Logits, best: int) -> float:
    """Natural logarithm of the sum of the exponentials; `best` has the largest logit."""
    largest, weights = row[best], _scratch.of(_BLOCK)
    total = 0.0
    for begin in range(0, len(row), _BLOCK):
        part = row[begin : begin + _BLOCK]
        part = np.subtract(part, largest, out=weights[: len(part)])
        total += float(np.add.reduce(np.exp(part, out=part)))
    return float(largest) + float(np.log(total))


def draw(row: Logits, best: int, temperature: float, random: float, error: float = WEIGHT_ERROR) -> int | None:
    """The first token, in the order of ids, at which the cumulative probability reaches `random`; `best` has the largest logit.

    None if that is so close to a boundary that an error of the probabilities might have moved it. The logits are divided by
    the temperature, and compared with the largest one, in single precision, as in llama.cpp.
    """
    scale, weights = np.float32(temperature), _scratch.of(len(row))
    largest = row[best] / scale
    totals = []
    for begin in range(0, len(row), _BLOCK):
        source, part = row[begin : begin + _BLOCK], weights[begin : begin + _BLOCK]
        if scale != 1:
            source = np.divide(source, scale, out=part)
        np.subtract(source, largest, out=part)
        np.exp(part, out=part)
        totals.append(float(np.add.reduce(part, dtype=np.float64)))
    ends = np.cumsum(totals)
    target, error = random * ends[-1], error * ends[-1]
    block = int(np.searchsorted(ends, target))
    before = ends[block - 1] if block else 0.0
    first = block * _BLOCK
    running = np.cumsum(weights[first : first + _BLOCK], dtype=np.float64)
    running += before
    at = int(np.searchsorted(running, target))
    lower = running[at - 1] if at else before
    if at == len(running) or running[at] - target < error or target - lower < error:
        return None
    return first + at
