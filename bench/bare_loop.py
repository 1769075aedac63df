"""The reference: a minimal Python program that runs given prompts on llama.cpp, without text, queue or cancellation.

Continuous batching over `slots` sequences, greedy, with prompts in chunks of 512 tokens and one memory stream per slot. A
prefix that all prompts share is computed once, in a stream of its own, and copied.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from engine.backends.llama.batch import Batch
from engine.backends.llama.gguf import start_llama
from engine.scheduler.step import StepEntry, StepPlan

_CHUNK: Final = 512
_BATCH: Final = 2048


@dataclass(slots=True)
class _Lane:
    """The tokens that a slot has to compute, their first position, and the number of tokens left to generate."""

    todo: list[int]
    position: int
    num_left: int


class Bare:
    """A loaded model with `slots` streams of memory and one more, computed step by step."""

    def __init__(self, path: Path, slots: int, context_size: int, threads: int) -> None:
        start_llama()
        self._model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        parameters = llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max, parameters.kv_unified = context_size * (slots + 1), slots + 1, False
        parameters.n_batch, parameters.n_ubatch = _BATCH, 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, parameters)
        self._memory = llama.llama_get_memory(self._context)
        self._num_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._slots = slots
        self._batch = Batch(_BATCH)

    def close(self) -> None:
        """Free the model and its memory."""
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def clear(self) -> None:
        """Clear the memory."""
        llama.llama_memory_clear(self._memory, False)

    def decode(self, entries: list[StepEntry]) -> NDArray[np.float32]:
        """Compute a step; return a row of logits for each sampled entry."""
        self._batch.fill(StepPlan(entries))
        assert llama.llama_decode(self._context, self._batch.raw) == 0
        pointer = llama.llama_get_logits(self._context)
        num_rows = sum(entry.num_rows for entry in entries)
        return (
            np.ctypeslib.as_array(pointer, shape=(num_rows, self._num_vocab))
            if num_rows
            else np.empty((0, 0), np.float32)
        )


class BareLoop(Bare):
    """Greedy generation of a fixed length."""

    def run(self, prompts: list[list[int]], num_generated: int, shared: list[int] | None = None) -> float:
        """Return generated tokens per second; `shared` is the start of every prompt, not repeated in them."""
        waiting = list(reversed(prompts))
        lanes: list[_Lane | None] = [None] * self._slots
        began = time.perf_counter()
        self.clear()
        if shared:
            self._decode([_Lane(shared, 0, 0)], self._slots)
        while waiting or any(lanes):
            for slot, lane in enumerate(lanes):
                if lane is None and waiting:
                    lanes[slot] = self._begin(slot, waiting.pop(), shared, num_generated)
            self._decode(lanes, 0)
            for slot, lane in enumerate(lanes):
                if lane is not None and lane.num_left == 0:
                    lanes[slot] = None
        return len(prompts) * num_generated / (time.perf_counter() - began)

    def _begin(self, slot: int, prompt: list[int], shared: list[int] | None, num_generated: int) -> _Lane:
        llama.llama_memory_seq_rm(self._memory, slot, -1, -1)
        if shared:
            llama.llama_memory_seq_cp(self._memory, self._slots, slot, -1, -1)
        return _Lane(prompt, len(shared or ()), num_generated)

    def _decode(self, lanes: list[_Lane | None], first_slot: int) -> None:
        entries, sampled, budget = [], [], _CHUNK
        for slot, lane in enumerate(lanes, first_slot):
            if lane is None or budget <= 0:
                continue
            tokens = lane.todo[:budget]
            if len(lane.todo) > 1:
                budget -= len(tokens)
            lane.todo = lane.todo[len(tokens) :]
            entries.append(StepEntry(None, slot, lane.position, tokens, int(not lane.todo)))  # type: ignore[arg-type]
            lane.position += len(tokens)
            if not lane.todo:
                sampled.append(lane)
        logits = self.decode(entries)
        if sampled:
            for lane, token in zip(sampled, logits.argmax(axis=1).tolist(), strict=True):
                lane.todo, lane.num_left = [token], max(0, lane.num_left - 1)
