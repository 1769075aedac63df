"""The embedder: the texts of a step in one row without padding, as a decoder's step, and pooled.

A model that cannot be computed so gets texts of about the same length in one forward, padded at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from engine.backends.base import InputPiece
from engine.backends.transformers.attention import NAME, PackedAttention
from engine.backends.transformers.groups import text_groups
from engine.backends.transformers.pooling import pool
from engine.backends.vectors import Vectors, normalised
from engine.config import EngineConfig, Pooling
from engine.errors import DecodeFailed, DeviceLost

_MAX_INPUTS: Final = 256
_FEW: Final = 2  # tokens of padding that another forward would cost more than
_LARGEST_DIFFERENCE: Final = (
    0.05  # of a value of a token's vector, about 1 in size; other positions change it by far more
)
_WINDOWS: Final = ("sliding_window", "local_attention")


class TransformersEmbedder:
    """Embeds inputs, each in one piece.

    A causal model has attention over lanes, and `windows` of its layers. `first_position` is the number of the first token's.
    """

    can_split = False

    def __init__(
        self,
        model: Any,  # Any: a model of transformers without its head
        config: EngineConfig,
        *,
        pooling: Pooling,
        longest_input: int,
        first_position: int = 0,
        windows: dict[int, int] | None,
    ) -> None:
        self._model = model
        self._device = model.device
        self._pooling = pooling
        self._pad_token = getattr(model.config, "pad_token_id", None) or 0
        self._is_causal = windows is not None
        self._windows = windows or {}
        self._arguments = {"use_cache": False} if self._is_causal else {}
        self._first_position = first_position
        self._compute = self._packed if self._is_causal or self._packs_correctly() else self._padded
        self.dimensions: int = model.config.get_text_config().hidden_size
        self.max_tokens = min(config.context_size, longest_input)
        self.step_tokens = min(config.prefill_tokens, config.batch_tokens)
        self.slots = min(_MAX_INPUTS, self.step_tokens)

    def warm_up(self) -> None:
        self.embed([InputPiece(0, 0, [0], is_last=True)])

    def embed(self, pieces: list[InputPiece]) -> Vectors:
        order = sorted(range(len(pieces)), key=lambda index: len(pieces[index].tokens))
        inputs = [pieces[index].tokens for index in order]
        vectors = np.empty((len(pieces), self.dimensions), np.float32)
        try:
            with torch.inference_mode():
                lengths = torch.tensor([len(tokens) for tokens in inputs], device=self._device)
                vectors[order] = pool(self._compute(inputs).float(), lengths, self._pooling).cpu().numpy()
        except torch.OutOfMemoryError:
            raise DecodeFailed("The device has not enough memory to embed this batch.") from None
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error
        return normalised(vectors)

    def clear(self, slot: int) -> None: ...

    def reset(self) -> None: ...

    def _packed(self, inputs: list[list[int]]) -> torch.Tensor:
        """Compute texts in order of length, behind each other in one row; return the vectors of all tokens."""
        lengths = [len(tokens) for tokens in inputs]
        first = self._first_position
        groups = text_groups(lengths, self._device, is_causal=self._is_causal)
        output = self._model(
            input_ids=torch.tensor([[token for tokens in inputs for token in tokens]], device=self._device),
            position_ids=torch.tensor(
                [[position for length in lengths for position in range(first, first + length)]], device=self._device
            ),
            lanes=PackedAttention(groups, self._windows),
            **self._arguments,
        )
        return output.last_hidden_state[0]

    def _padded(self, inputs: list[list[int]]) -> torch.Tensor:
        """Compute texts in order of length, padded where they are about as long, by the library's own attention."""
        rows = []
        for bucket in _buckets(inputs):
            longest = len(bucket[-1])
            padded = [tokens + [self._pad_token] * (longest - len(tokens)) for tokens in bucket]
            is_real = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in bucket])
            mask = is_real.to(self._device)
            output = self._model(input_ids=torch.tensor(padded, device=self._device), attention_mask=mask)
            rows.append(output.last_hidden_state[mask.bool()])
        return torch.cat(rows)

    def _packs_correctly(self) -> bool:
        """Does the model give the same vectors for texts in one row as for padded ones? Some compute positions by themselves."""
        if not self._model._supports_attention_backend or _has_windows(self._model.config):
            return False
        tokens = [token for token in range(7) if token != self._pad_token]  # some count positions by it
        inputs = [tokens[:2], tokens]
        own = self._model.config._attn_implementation
        with torch.inference_mode():
            expected = self._padded(inputs).float()
            self._model.set_attn_implementation(NAME)
            try:
                found = self._packed(inputs).float()
            except Exception:  # whatever a model raises for arguments that it does not take
                found = torch.full_like(expected, float("nan"))
        if (found - expected).abs().max() <= _LARGEST_DIFFERENCE:
            return True
        self._model.set_attn_implementation(own)
        return False


def _has_windows(config: Any) -> bool:  # Any: a configuration of transformers
    """Do some layers look at neighbours alone?"""
    kinds = set(getattr(config, "layer_types", None) or [])
    return bool(kinds - {"full_attention"}) or any(getattr(config, name, None) for name in _WINDOWS)


def _buckets(inputs: list[list[int]]) -> Iterator[list[list[int]]]:
    """Split inputs in order of length where the padding of the shorter ones would be much."""
    bucket: list[list[int]] = []
    for tokens in inputs:
        if bucket and len(tokens) > 1.25 * len(bucket[0]) + _FEW:
            yield bucket
            bucket = []
        bucket.append(tokens)
    yield bucket
