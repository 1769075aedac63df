"""Bit masks over the vocabulary, applied to a row of logits without a loop over tokens.

A mask is int32 words; bit `token % 32` of word `token // 32` is set if the token is allowed. Each byte selects eight bounds
from a table, +inf for allowed and -inf for forbidden tokens; the minimum of logits and bounds is the masked row. That takes
about 40 us for 152,064 tokens, however many of them are allowed; indexing by the mask takes up to 700 us.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BITS: Final = (np.arange(256)[:, None] >> np.arange(8)) & 1
_BOUNDS: Final = np.where(_BITS, np.inf, -np.inf).astype(np.float32)  # by byte, (256, 8)


def best_allowed(logits: NDArray[np.float32], mask: NDArray[np.int32]) -> int:
    """Return the allowed token with the greatest logit, the first of equals. Raises ValueError if none is allowed."""
    best = int(logits.argmax())
    if mask[best >> 5] >> (best & 31) & 1:
        return best  # the common case: the model's best token is allowed
    bounds = _bounds(mask, logits.size)
    np.minimum(logits, bounds, out=bounds)
    best = int(bounds.argmax())
    return best if bounds[best] != -np.inf else _first_allowed(mask, logits.size)


def forbid(logits: NDArray[np.float32], mask: NDArray[np.int32]) -> None:
    """Set the logits of all forbidden tokens to -inf, in place."""
    np.minimum(logits, _bounds(mask, logits.size), out=logits)


def scratch_mask(num_vocab: int) -> NDArray[np.int32]:
    """Return this thread's mask for a vocabulary, with arbitrary content: valid until the next call."""
    num_words = (num_vocab + 31) // 32
    if len(_scratch.mask) != num_words:
        _scratch.mask = np.empty(num_words, np.int32)
    return _scratch.mask


def _bounds(mask: NDArray[np.int32], num_vocab: int) -> NDArray[np.float32]:
    """Return the bounds of a mask, (num_vocab,), in this thread's scratch memory: valid until the next call."""
    if len(_scratch.bounds) != mask.nbytes:
        _scratch.bounds = np.empty((mask.nbytes, 8), np.float32)
    bounds = _scratch.bounds
    np.take(
        _BOUNDS, mask.view(np.uint8), axis=0, out=bounds, mode="clip"
    )  # clip: no check, since a byte is always in range
    return bounds.reshape(-1)[:num_vocab]


def _first_allowed(mask: NDArray[np.int32], num_vocab: int) -> int:
    """Return the first allowed token; used when every allowed logit is -inf."""
    allowed = np.unpackbits(mask.view(np.uint8), bitorder="little", count=num_vocab)
    first = int(allowed.argmax())
    if not allowed[first]:
        raise ValueError("the mask allows no token")
    return first


class _Scratch(threading.local):
    """Arrays of one thread, since rows are sampled side by side."""

    def __init__(self) -> None:
        self.mask = np.empty(0, np.int32)
        self.bounds = np.empty((0, 8), np.float32)


_scratch: Final = _Scratch()
