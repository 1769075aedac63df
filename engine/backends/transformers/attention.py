"""Attention over lanes, registered with transformers under a name of its own.

The layers of a model call it with the queries, keys and values of a step, and pass on the `lanes` argument of the model's
forward. Keys are never repeated for the query heads that share them: those queries lie behind each other instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from engine.backends.transformers.groups import Group, StepLayout
from engine.backends.transformers.lanes import Lanes, LaneShape

NAME: Final = "millrace_lanes"
_UNSUPPORTED: Final = ("position_bias", "block_sequence_ids")


class UnsupportedAttention(Exception):
    """The attention of this model needs something that lanes do not have."""


class ScoreOptions:
    """The scale of scores, a limit of their size (Gemma 2), and a score of nothing for each head (gpt-oss)."""

    __slots__ = ("scale", "sinks", "softcap")

    def __init__(self, scale: float | None, softcap: float | None, sinks: torch.Tensor | None) -> None:
        self.scale, self.softcap, self.sinks = scale, softcap, sinks


class LaneAttention:
    """The attention of one step: the layout of its tokens, and the memory. `windows` has those of layers that are limited."""

    def __init__(self, lanes: Lanes, layout: StepLayout, windows: Mapping[int, int]) -> None:
        self._lanes = lanes
        self._layout = layout
        self._windows = windows
        self._indices = [(group.lanes(), group.padded_rows()) for group in layout.groups]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        options: ScoreOptions,
    ) -> torch.Tensor:
        """Store the new keys and values, and return (1, tokens, heads, numbers)."""
        self._lanes.write(layer, self._layout.cells, key[0], value[0])
        keys, values = self._lanes.keys[layer], self._lanes.values[layer]
        repeats = query.shape[1] // key.shape[1]
        rows = query[0].transpose(0, 1)  # (tokens, heads, numbers)
        parts = []
        for group, (lanes, padded) in zip(self._layout.groups, self._indices, strict=True):
            part = _attend(
                rows[group.first : group.end] if padded is None else rows[padded[0].flatten()],
                keys[lanes, : group.length],
                values[lanes, : group.length],
                group.mask(self._windows.get(layer, 0), repeats, query.dtype),
                len(group.slots),
                options,
            )
            parts.append(part if padded is None else part[padded[1]])
        return torch.cat(parts)[None] if len(parts) > 1 else parts[0][None]


class PackedAttention:
    """Attention within each of several texts in one row, without memory; `windows` as in `LaneAttention`."""

    def __init__(self, groups: Sequence[Group], windows: Mapping[int, int]) -> None:
        self._groups = groups
        self._windows = windows
        self._indices = [group.padded_rows() for group in groups]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: ScoreOptions
    ) -> torch.Tensor:
        """Return (1, tokens, heads, numbers)."""
        repeats = query.shape[1] // key.shape[1]
        rows = [each[0].transpose(0, 1) for each in (query, key, value)]  # (tokens, heads, numbers)
        parts = []
        for group, padded in zip(self._groups, self._indices, strict=True):
            index = slice(group.first, group.end) if padded is None else padded[0].flatten()
            queries, keys, values = (each[index] for each in rows)
            number = len(group.slots)
            part = _attend(
                queries,
                keys.view(number, -1, *keys.shape[1:]),
                values.view(number, -1, *values.shape[1:]),
                group.mask(self._windows.get(layer, 0), repeats, query.dtype),
                number,
                options,
            )
            parts.append(part if padded is None else part[padded[1]])
        return torch.cat(parts)[None] if len(parts) > 1 else parts[0][None]


class ShapeProbe:
    """Stands in for `LaneAttention` in a first forward, and records the shapes of all layers."""

    def __init__(self) -> None:
        self.shapes: dict[int, LaneShape] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: ScoreOptions
    ) -> torch.Tensor:
        """Record the shapes, and return zeros."""
        self.shapes[layer] = LaneShape(key.shape[1], key.shape[3], value.shape[3], key.dtype)
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))


def _attend(
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    number: int,
    options: ScoreOptions,
) -> torch.Tensor:
    """Attention of (entries * new tokens, heads, numbers) to lanes of (entries, length, key heads, numbers), in that order."""
    heads, key_heads = rows.shape[1], keys.shape[2]
    repeats, num_new = heads // key_heads, rows.shape[0] // number
    query = rows.view(number, num_new, key_heads, repeats, rows.shape[2]).permute(0, 2, 3, 1, 4)
    query = query.reshape(number, key_heads, repeats * num_new, rows.shape[2])
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if options.softcap is None and options.sinks is None:
        out = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=options.scale)
    else:
        out = _attend_eagerly(query, keys, values, mask, options, num_new)
    out = out.view(number, key_heads, repeats, num_new, values.shape[3])
    return out.permute(0, 3, 1, 2, 4).reshape(number * num_new, heads, values.shape[3])


def _attend_eagerly(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    options: ScoreOptions,
    num_new: int,
) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5 if options.scale is None else options.scale
    scores = torch.matmul(query, keys.transpose(2, 3)).float() * scale
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    if mask is not None:
        scores = scores + mask
    if options.sinks is None:
        weights = scores.softmax(-1)
    else:
        key_heads, repeats = query.shape[1], query.shape[2] // num_new
        sinks = options.sinks.float().view(key_heads, repeats, 1).expand(-1, -1, num_new).reshape(1, key_heads, -1, 1)
        with_sinks = torch.cat([scores, sinks.expand(scores.shape[0], -1, -1, -1)], -1)
        weights = with_sinks.softmax(-1)[..., :-1]
    return torch.matmul(weights.to(values.dtype), values)


def _forward(
    module: Any,  # Any: an attention layer of some model
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: Any,  # Any: None, since transformers makes no mask for a function that it does not know
    *,
    lanes: LaneAttention | PackedAttention | ShapeProbe,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,  # Any: further arguments of some models
) -> tuple[torch.Tensor, None]:
    """The function that layers call."""
    if any(others.get(name) is not None for name in _UNSUPPORTED):
        raise UnsupportedAttention
    options = ScoreOptions(scaling, softcap, s_aux)
    return lanes.attend(getattr(module, "layer_idx", None) or 0, query, key, value, options), None


AttentionInterface.register(NAME, _forward)
