"""The llama.cpp embedder: a context of its own that pools the tokens of each sequence into one vector.

llama.cpp pools within one computation, so a prompt is never split: a batch holds whole prompts and is one micro-batch, and all
sequences share one memory (with a stream for each, unequal lengths would be split). Encoders such as BERT have no memory and
attend in both directions, which llama.cpp handles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llama_cpp as llama
import numpy as np

from engine.backends.llama.batch import Batch
from engine.backends.llama.context import MAX_EMBEDDED_SEQUENCES, embedding_context
from engine.backends.vectors import Vectors, normalised
from engine.config import EngineConfig
from engine.errors import DecodeFailed


class LlamaEmbedder:
    """Embeds prompts. A batch has room for the longest allowed prompt, so `context_size` limits its memory."""

    def __init__(self, model: Any, config: EngineConfig) -> None:  # Any: a pointer
        self.dimensions: int = llama.llama_model_n_embd_out(model)
        self.max_tokens: int = min(config.context_size, llama.llama_model_n_ctx_train(model))
        self._context = embedding_context(model, config, self.max_tokens)
        self._memory = llama.llama_get_memory(self._context)
        self._compute = llama.llama_encode if llama.llama_model_has_encoder(model) else llama.llama_decode
        self._batch = Batch(self.max_tokens)

    @property
    def has_memory(self) -> bool:
        """False for an encoder, which cannot generate."""
        return bool(self._memory)

    def embed(self, prompts: list[list[int]]) -> Vectors:
        assert max(map(len, prompts), default=0) <= self.max_tokens, "encode_inputs checks the length"
        vectors = np.empty((len(prompts), self.dimensions), np.float32)
        at = 0
        for group in self._groups(prompts):
            self._embed_group(group, vectors[at : at + len(group)])
            at += len(group)
        return normalised(vectors)

    def close(self) -> None:
        """Free the context; the model stays loaded."""
        llama.llama_free(self._context)

    def _groups(self, prompts: list[list[int]]) -> Iterator[list[list[int]]]:
        """Prompts in order, as many at a time as one batch holds."""
        group: list[list[int]] = []
        num_tokens = 0
        for prompt in prompts:
            if group and (len(group) == MAX_EMBEDDED_SEQUENCES or num_tokens + len(prompt) > self.max_tokens):
                yield group
                group, num_tokens = [], 0
            group.append(prompt)
            num_tokens += len(prompt)
        if group:
            yield group

    def _embed_group(self, prompts: list[list[int]], vectors: Vectors) -> None:
        self._fill(prompts)
        code = self._compute(self._context, self._batch.raw)
        if code != 0:
            raise DecodeFailed(f"llama.cpp could not embed this batch: it returned {code}")
        for index in range(len(prompts)):
            pooled = llama.llama_get_embeddings_seq(self._context, index)
            vectors[index] = np.ctypeslib.as_array(pooled, shape=(self.dimensions,))
        if self._memory:
            llama.llama_memory_clear(self._memory, False)
        if not np.isfinite(vectors).all():
            raise DecodeFailed("The model computed a vector with values that are not numbers.")

    def _fill(self, prompts: list[list[int]]) -> None:
        """Write one sequence per prompt; every token is pooled."""
        batch, at = self._batch, 0
        for index, prompt in enumerate(prompts):
            end = at + len(prompt)
            batch.tokens[at:end] = prompt
            batch.positions[at:end] = range(len(prompt))
            batch.slots[at:end] = index
            at = end
        batch.wants_logits[:at] = 1
        batch.raw.n_tokens = at
