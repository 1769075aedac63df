"""The limit: the least a Python program can do to run given prompts on llama.cpp. No text, no queue, no cancellation.

Continuous batching over `slots` sequences, greedy, prompts read in chunks of 512 tokens, one memory stream per slot.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any, Final

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

_CHUNK: Final = 512
_BATCH: Final = 2048


@llama.llama_log_callback  # type: ignore[untyped-decorator,unused-ignore]
def _quiet(_level: int, _text: bytes, _data: Any) -> None:  # Any: a pointer
    """Nothing to say."""


class BareLoop:
    """A loaded model."""

    def __init__(self, path: str, slots: int, context_size: int, threads: int) -> None:
        llama.llama_log_set(_quiet, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self._model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        parameters = llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max, parameters.kv_unified = context_size * slots, slots, False
        parameters.n_batch, parameters.n_ubatch = _BATCH, 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, parameters)
        self._memory = llama.llama_get_memory(self._context)
        self._num_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._slots = slots
        self._batch = llama.llama_batch_init(_BATCH, 0, 1)

    def close(self) -> None:
        """Give the memory back."""
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def run(self, prompts: list[list[int]], num_generated: int) -> float:
        """Generated tokens per second."""
        waiting = list(prompts)
        todo: list[list[int]] = [[] for _ in range(self._slots)]
        places, left = [0] * self._slots, [0] * self._slots
        total = len(prompts) * num_generated
        began = time.perf_counter()
        while waiting or any(left):
            for slot in range(self._slots):
                if not left[slot] and waiting:
                    llama.llama_memory_seq_rm(self._memory, slot, -1, -1)
                    todo[slot], places[slot], left[slot] = waiting.pop(0), 0, num_generated
            sampled = self._decode(todo, places, left)
            for slot, token in sampled.items():
                todo[slot] = [token]
                left[slot] -= 1
        return total / (time.perf_counter() - began)

    def _decode(self, todo: list[list[int]], places: list[int], left: list[int]) -> dict[int, int]:
        batch, at, budget, rows = self._batch, 0, _CHUNK, []
        for slot in sorted((slot for slot in range(self._slots) if left[slot]), key=lambda slot: len(todo[slot]) > 1):
            tokens = todo[slot][: 1 if len(todo[slot]) == 1 else budget]
            budget -= len(tokens) if len(todo[slot]) > 1 else 0
            for token in tokens:
                batch.token[at], batch.pos[at], batch.logits[at] = token, places[slot], 0
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot
                places[slot] += 1
                at += 1
            todo[slot] = todo[slot][len(tokens) :]
            if tokens and not todo[slot]:
                batch.logits[at - 1] = 1
                rows.append(slot)
        batch.n_tokens = at
        assert llama.llama_decode(self._context, batch) == 0
        pointer = llama.llama_get_logits(self._context)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(max(1, len(rows)), self._num_vocab))
        return dict(zip(rows, logits.argmax(axis=1).tolist(), strict=False)) if rows else {}
