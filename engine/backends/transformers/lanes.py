"""Lanes: keys and values of all slots, in two tensors for each layer, (slots, cells, heads, numbers of a head).

The tokens of a step lie behind each other in one row, without padding, since all parts of a model but attention treat tokens
one by one. Attention writes their keys and values to the lanes and reads those of the whole sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from engine.scheduler.slots import Fork


@dataclass(frozen=True, slots=True)
class LaneShape:
    """Heads and numbers of the keys and values of a layer."""

    heads: int
    key_size: int
    value_size: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in this layer."""
        return self.heads * (self.key_size + self.value_size) * int(self.dtype.itemsize)


class Lanes:
    """The memory of a decoder; allocated at once. Raises RuntimeError if it does not fit."""

    def __init__(
        self, shapes: Sequence[LaneShape], *, num_slots: int, context_size: int, device: torch.device | str
    ) -> None:
        self.context_size = context_size
        room = num_slots, context_size
        self.keys = [_zeros((*room, each.heads, each.key_size), each.dtype, device) for each in shapes]
        self.values = [_zeros((*room, each.heads, each.value_size), each.dtype, device) for each in shapes]

    def write(self, layer: int, cells: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store the keys and values of a step, (heads, tokens, numbers), in `cells`: slot * context_size + position."""
        for lanes, new in ((self.keys[layer], keys), (self.values[layer], values)):
            lanes.flatten(0, 1).index_copy_(0, cells, new.transpose(0, 1))

    def fork(self, fork: Fork) -> None:
        """Copy the beginning of a lane to another one. A shorter lane needs nothing: its length is its sequence's."""
        if fork.length and fork.source != fork.target:
            for lanes in (*self.keys, *self.values):
                lanes[fork.target, : fork.length] = lanes[fork.source, : fork.length]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """Zeros; in the memory of the host, those of pages that are not used yet, which take no memory and no time."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    try:
        memory = np.zeros(prod(shape) * dtype.itemsize, np.uint8)
    except (MemoryError, ValueError) as error:
        raise RuntimeError(str(error)) from None
    return torch.from_numpy(memory).view(dtype).view(shape)
