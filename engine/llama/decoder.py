"""Steps on llama.cpp: one context, one sequence id per slot, memory split per slot.

Attention of unrelated prompts then walks its own cells only.
"""

from __future__ import annotations

import os
from typing import Any

import llama_cpp as llama
import numpy as np

from engine.config import EngineConfig
from engine.errors import DecodeFailed, ModelFailed
from engine.llama.batch import Batch
from engine.llama.sampling import is_plainly_greedy, sampler_chain
from engine.llama.tokenizer import LlamaTokenizer
from engine.scheduler import Plan
from engine.sequence import Sequence


class LlamaDecoder:
    """See `engine.backend.Decoder`."""

    def __init__(self, model: Any, tokenizer: LlamaTokenizer, config: EngineConfig) -> None:  # Any: a pointer
        self.build = f"llama-cpp-python-{llama.__version__}"
        threads = config.threads or len(os.sched_getaffinity(0))
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = config.context_size * config.slots
        parameters.n_seq_max = config.slots
        parameters.kv_unified = False
        parameters.n_batch = config.batch_tokens
        parameters.n_ubatch = config.ubatch_tokens
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama.llama_init_from_model(model, parameters)
        if not self._context:
            raise ModelFailed(
                f"There is not enough memory for {config.slots} slots of {config.context_size} tokens. "
                "Lower `slots` or `context_size` in the model file."
            )
        self._memory = llama.llama_get_memory(self._context)
        self._batch = Batch(config.batch_tokens)
        self._num_vocab = tokenizer.num_vocab
        self._context_size = config.context_size
        self._end_tokens = np.array(tokenizer.end_tokens, np.int64)
        self._chains: dict[int, Any] = {}  # Any: pointers, by slot

    def open(self, sequence: Sequence) -> None:
        """Sequences that are not plainly greedy get a sampler chain of their own."""
        assert sequence.slot is not None, "opened with a slot"
        if not is_plainly_greedy(sequence.sampling):
            self._chains[sequence.slot] = sampler_chain(sequence, self._num_vocab, self._context_size)

    def run(self, plan: Plan) -> list[int]:
        """Decode, then sample: greedy rows together, the others by their chains."""
        rows = self._batch.fill(plan)
        code = llama.llama_decode(self._context, self._batch.raw)
        if code != 0:
            raise DecodeFailed(f"llama_decode returned {code}")
        if not rows:
            return []
        return self._sample(plan, rows)

    def release(self, sequence: Sequence) -> None:
        """Clear the slot, recurrent state included, and free its chain."""
        assert sequence.slot is not None, "released with its slot"
        llama.llama_memory_seq_rm(self._memory, sequence.slot, -1, -1)
        if (chain := self._chains.pop(sequence.slot, None)) is not None:
            llama.llama_sampler_free(chain)

    def reset(self) -> None:
        """Clear all slots."""
        llama.llama_memory_clear(self._memory, True)
        for chain in self._chains.values():
            llama.llama_sampler_free(chain)
        self._chains.clear()

    def _sample(self, plan: Plan, rows: list[int]) -> list[int]:
        pointer = llama.llama_get_logits(self._context)  # waits for the device; rows are in batch order
        logits = np.ctypeslib.as_array(pointer, shape=(len(rows), self._num_vocab))
        for index, entry in enumerate(plan.sampled):
            if entry.sequence.ignore_eos:
                logits[index, self._end_tokens] = -np.inf
        best = logits.argmax(axis=1)
        if not np.isfinite(logits[np.arange(len(rows)), best]).all():
            raise DecodeFailed("the model computed a logit that is not a number")
        tokens: list[int] = best.tolist()
        for index, entry in enumerate(plan.sampled):
            if (chain := self._chains.get(entry.slot)) is not None:
                tokens[index] = llama.llama_sampler_sample(chain, self._context, rows[index])
        return tokens
