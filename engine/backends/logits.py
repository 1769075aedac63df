"""What a sampler computes of a row of logits, in few passes: a row of 262,144 tokens is 1 MiB, and each pass takes 15 to 150 us.

All of it is exact: where single precision could decide something else than the plain computation, `draw` gives up.
"""

from __future__ import annotations

import threading
from math import isfinite
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.errors import DecodeFailed

Logits = NDArray[np.float32]
Tokens = NDArray[np.intp]
Mask = NDArray[np.bool_]
Sums = NDArray[np.float64]

_GROUPS: Final = 4096
_BLOCK: Final = 32_768  # tokens whose exponentials stay in the cache while they are added
_CHUNK: Final = 512  # of these are added in single precision
_LEAST: Final = np.finfo(np.float32).min
_FEW: Final = 1 / 40  # of a mask: numpy finds fewer positions faster by looking for each
_MANY: Final = 1 / 10  # of a mask: numpy finds more of them by a loop without branches
WEIGHT_ERROR: Final = 4e-6  # of a sum of exponentials: 4 units in the last place of each, and rounding of pairwise sums


class _Scratch(threading.local):
    """Exponentials and a mask of one row; each thread has its own, since rows are sampled side by side."""

    def __init__(self) -> None:
        self.weights = np.empty(0, np.float32)
        self.mask = np.empty(0, np.bool_)

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
    tokens: list[int] = rows.argmax(axis=1).tolist()
    # Python adds a few numbers faster than numpy, whose code for it is in no cache after a decode
    if not isfinite(sum(map(rows.item, range(len(rows)), tokens))):
        raise DecodeFailed("The model computed a logit that is not a number.")
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
    _, sums = _weights(row, row[best], np.float32(1))
    return float(row[best]) + float(np.log(sums.sum()))


def draw(row: Logits, best: int, temperature: float, random: float, error: float = WEIGHT_ERROR) -> int | None:
    """The first token, in the order of ids, at which the cumulative probability reaches `random`; `best` has the largest logit.

    None if that is so close to a boundary that an error of the probabilities might have moved it. The logits are divided by
    the temperature, and compared with the largest one, in single precision, as in llama.cpp.
    """
    scale = np.float32(temperature)
    weights, sums = _weights(row, row[best] / scale, scale)
    ends = np.cumsum(sums)
    target, error = random * ends[-1], error * ends[-1]
    chunk = int(np.searchsorted(ends, target))
    before = ends[chunk - 1] if chunk else 0.0
    running = before + np.cumsum(weights[chunk * _CHUNK : (chunk + 1) * _CHUNK], dtype=np.float64)
    at = int(np.searchsorted(running, target))
    lower = running[at - 1] if at else before
    if at == len(running) or running[at] - target < error or target - lower < error:
        return None
    return chunk * _CHUNK + at


def _weights(row: Logits, largest: np.float32, scale: np.float32) -> tuple[Logits, Sums]:
    """The exponentials of the logits over `scale`, relative to the largest, and their sums over chunks.

    einsum adds with all lanes of a processor, many times as fast as a sum, and precisely enough for a chunk.
    """
    weights = _scratch.of(-(-len(row) // _CHUNK) * _CHUNK)
    weights[len(row) :] = 0
    sums = np.empty(len(weights) // _CHUNK)
    for begin in range(0, len(weights), _BLOCK):
        source, chunks = row[begin : begin + _BLOCK], weights[begin : begin + _BLOCK]
        part = chunks[: len(source)]
        if scale != 1:
            source = np.divide(source, scale, out=part)
        np.exp(np.subtract(source, largest, out=part), out=part)
        sums[begin // _CHUNK : (begin + len(chunks)) // _CHUNK] = np.einsum("ij->i", chunks.reshape(-1, _CHUNK))
    return weights, sums


def scratch_mask(size: int) -> Mask:
    """This thread's mask for a row, with arbitrary content: valid until the next call."""
    whole = size + round(size * _MANY / (1 - _MANY)) + 2
    if len(_scratch.mask) != whole:
        _scratch.mask = np.ones(whole, np.bool_)
    return _scratch.mask[:size]


def positions(mask: Mask) -> Tokens:
    """The positions that are set in a scratch mask.

    numpy takes its loop without branches, which is faster from a few thousand positions on, if enough of the ones behind the mask
    count with it.
    """
    number, size = int(np.count_nonzero(mask)), len(mask)
    if number < _FEW * size:
        return np.flatnonzero(mask)
    more = max(0, round((_MANY * size - number) / (1 - _MANY)) + 2)
    return np.flatnonzero(_scratch.mask[: size + more])[:number]
