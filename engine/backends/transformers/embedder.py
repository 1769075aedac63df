"""The embedder: texts of about the same length in one forward, padded at the end, and pooled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from engine.backends.base import InputPiece
from engine.backends.transformers.attention import BatchAttention
from engine.backends.transformers.pooling import pool
from engine.backends.vectors import Vectors, normalised
from engine.config import EngineConfig, Pooling
from engine.errors import DecodeFailed

_MAX_INPUTS: Final = 256
_FEW: Final = 8  # tokens of padding that another forward would cost more than


class TransformersEmbedder:
    """Embeds inputs, each in one piece. `windows` are given for a causal model, whose attention is over lanes."""

    can_split = False

    def __init__(
        self,
        model: Any,  # Any: a model of transformers without its head
        config: EngineConfig,
        *,
        pooling: Pooling,
        longest_input: int,
        pad_token: int,
        windows: dict[int, int] | None,
    ) -> None:
        self._model = model
        self._device = model.device
        self._pooling = pooling
        self._pad_token = pad_token
        self._windows = windows
        self.dimensions: int = model.config.get_text_config().hidden_size
        self.max_tokens = min(config.context_size, longest_input)
        self.step_tokens = min(config.prefill_tokens, config.batch_tokens)
        self.slots = min(_MAX_INPUTS, self.step_tokens)

    def warm_up(self) -> None:
        self.embed([InputPiece(0, 0, [0], is_last=True)])

    def embed(self, pieces: list[InputPiece]) -> Vectors:
        vectors = np.empty((len(pieces), self.dimensions), np.float32)
        try:
            with torch.inference_mode():
                for indices in _buckets(pieces):
                    vectors[indices] = self._embed([pieces[index].tokens for index in indices])
        except torch.OutOfMemoryError:
            raise DecodeFailed("The device has not enough memory to embed this batch.") from None
        return normalised(vectors)

    def clear(self, slot: int) -> None: ...

    def reset(self) -> None: ...

    def _embed(self, inputs: list[list[int]]) -> Vectors:
        """Compute vectors of inputs in order of length, (inputs, dimensions)."""
        longest = len(inputs[-1])
        padded = [tokens + [self._pad_token] * (longest - len(tokens)) for tokens in inputs]
        ids = torch.tensor(padded, device=self._device)
        lengths = torch.tensor([len(tokens) for tokens in inputs], device=self._device)
        if self._windows is not None:
            output = self._model(input_ids=ids, use_cache=False, lanes=BatchAttention(self._windows))
        else:
            mask = (torch.arange(longest, device=self._device) < lengths[:, None]).long()
            output = self._model(input_ids=ids, attention_mask=mask)
        pooled: Vectors = pool(output.last_hidden_state.float(), lengths, self._pooling).cpu().numpy()
        return pooled


def _buckets(pieces: list[InputPiece]) -> Iterator[list[int]]:
    """Indices of the inputs in order of length, split where the padding of the shorter ones would be much."""
    order = sorted(range(len(pieces)), key=lambda index: len(pieces[index].tokens))
    bucket: list[int] = []
    for index in order:
        if bucket and len(pieces[index].tokens) > 2 * len(pieces[bucket[0]].tokens) + _FEW:
            yield bucket
            bucket = []
        bucket.append(index)
    yield bucket
