"""The llama.cpp embedder: a context of its own, whose inputs share one memory, since with streams unequal lengths are split.

Where tokens attend to earlier ones only, an input may be computed in several decodes: its memory stays in its slot, and the
vectors of its tokens are pooled here. Encoders such as BERT have no memory and attend in both directions, so their inputs are
never split; llama.cpp pools them, within one micro-batch.
"""

from __future__ import annotations

from typing import Any

import llama_cpp as llama
import numpy as np

from engine.backends.base import InputPiece
from engine.backends.llama.batch import Batch
from engine.backends.llama.context import embedding_context, pooling_type
from engine.backends.llama.openmp import BoundThread
from engine.backends.vectors import Vectors, normalised
from engine.config import EngineConfig
from engine.errors import DecodeFailed


class LlamaEmbedder:
    """Embeds inputs. Its context has room for the longest allowed input, so `context_size` limits its memory."""

    def __init__(self, model: Any, config: EngineConfig) -> None:  # Any: a pointer
        self.dimensions: int = llama.llama_model_n_embd_out(model)
        self.max_tokens: int = min(config.context_size, llama.llama_model_n_ctx_train(model))
        self.step_tokens = min(config.prefill_tokens, config.ubatch_tokens, self.max_tokens)
        self._context = embedding_context(model, config, self.max_tokens, self.step_tokens)
        self._memory = llama.llama_get_memory(self._context)
        self.can_split = bool(self._memory) and bool(llama.llama_get_causal_attn(self._context))
        self.slots: int = min(llama.llama_n_seq_max(self._context), self.step_tokens)
        self._pooling = pooling_type(model, config.pooling)
        self._compute = llama.llama_encode if llama.llama_model_has_encoder(model) else llama.llama_decode
        self._batch = Batch(llama.llama_n_ubatch(self._context))
        self._bound_thread = BoundThread(config.cores)
        self._unfinished: dict[int, Vectors] = {}  # the pooled vector of each slot, (dimensions,); for the mean, a sum

    @property
    def has_memory(self) -> bool:
        """False for an encoder, which cannot generate."""
        return bool(self._memory)

    def warm_up(self) -> None:
        self._embed([InputPiece(0, 0, [0], is_last=True)])

    def embed(self, pieces: list[InputPiece]) -> Vectors:
        self._bound_thread.bind()
        return self._embed(pieces)

    def _embed(self, pieces: list[InputPiece]) -> Vectors:
        self._fill(pieces)
        code = self._compute(self._context, self._batch.raw)
        if code != 0:
            raise DecodeFailed(f"llama.cpp could not embed this batch: it returned {code}")
        vectors = self._pool(pieces) if self.can_split else self._pooled(pieces)
        self._free_slots(pieces)
        return normalised(vectors)

    def clear(self, slot: int) -> None:
        self._unfinished.pop(slot, None)
        if self._memory:
            llama.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def reset(self) -> None:
        self._unfinished.clear()
        if self._memory:
            llama.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Free the context; the model stays loaded."""
        llama.llama_free(self._context)

    def _fill(self, pieces: list[InputPiece]) -> None:
        """Write one sequence per piece; every token is pooled."""
        batch, at = self._batch, 0
        for piece in pieces:
            end = at + len(piece.tokens)
            batch.tokens[at:end] = piece.tokens
            batch.positions[at:end] = range(piece.start, piece.start + len(piece.tokens))
            batch.slots[at:end] = piece.slot
            at = end
        batch.wants_logits[:at] = 1
        batch.raw.n_tokens = at

    def _pool(self, pieces: list[InputPiece]) -> Vectors:
        """Pool the vectors of the tokens of each piece; keep those of inputs that go on, return those of inputs that end."""
        pointer = llama.llama_get_embeddings(self._context)
        rows = np.ctypeslib.as_array(pointer, shape=(self._batch.raw.n_tokens, self.dimensions))
        ended, at = [], 0
        for piece in pieces:
            tokens = rows[at : at + len(piece.tokens)]
            at += len(piece.tokens)
            vector = self._join(piece, tokens)
            if piece.is_last:
                ended.append(vector)
            else:
                self._unfinished[piece.slot] = vector.copy()
        return np.array(ended, np.float32).reshape(len(ended), self.dimensions)

    def _join(self, piece: InputPiece, tokens: Vectors) -> Vectors:
        """The pooled vector of an input up to the end of this piece; a sum stands for the mean, which has the same direction."""
        if self._pooling == llama.LLAMA_POOLING_TYPE_LAST:
            return np.asarray(tokens[-1])
        earlier = self._unfinished.pop(piece.slot, None)
        if self._pooling == llama.LLAMA_POOLING_TYPE_CLS:
            return np.asarray(tokens[0]) if earlier is None else earlier
        total: Vectors = tokens.sum(axis=0)
        return total if earlier is None else earlier + total

    def _pooled(self, pieces: list[InputPiece]) -> Vectors:
        """The vectors that llama.cpp has pooled."""
        pointers = [llama.llama_get_embeddings_seq(self._context, piece.slot) for piece in pieces]
        return np.array([np.ctypeslib.as_array(pointer, shape=(self.dimensions,)) for pointer in pointers])

    def _free_slots(self, pieces: list[InputPiece]) -> None:
        if not self._unfinished:
            self.reset()
            return
        for piece in pieces:
            if piece.is_last:
                self.clear(piece.slot)
