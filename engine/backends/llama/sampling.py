"""Chooses tokens by chains of llama.cpp's samplers."""

from __future__ import annotations

import os
from typing import Any

import llama_cpp as llama

from engine.backends.sampler import PENALTY_WINDOW, Logits, has_penalty
from engine.scheduler.sequence import Sequence


class ChainChooser:
    """A sampler chain of one sequence, which reads the logits of the last decode of a context."""

    def __init__(self, context: Any, sequence: Sequence, *, num_vocab: int, context_size: int) -> None:  # Any: pointer
        self._context = context
        self._chain = _chain(sequence, num_vocab, context_size)

    def choose(self, row: Logits, batch_index: int) -> int:  # noqa: ARG002 - llama.cpp has the row by its index
        return int(llama.llama_sampler_sample(self._chain, self._context, batch_index))

    def close(self) -> None:
        llama.llama_sampler_free(self._chain)


def _chain(sequence: Sequence, num_vocab: int, context_size: int) -> Any:  # Any: a pointer
    """Make a chain of llama.cpp samplers in the default order of llama.cpp.

    `repeat_penalty` counts the last tokens of the prompt too, as in llama.cpp; the two penalties of OpenAI count only the
    output, so they get a sampler of their own that has not seen the prompt.
    """
    sampling = sequence.sampling
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:  # Any: a pointer
        llama.llama_sampler_chain_add(chain, sampler)

    if sampling.repeat_penalty != 1:
        repeat = llama.llama_sampler_init_penalties(num_vocab, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
        for token in sequence.tokens[-PENALTY_WINDOW:]:
            llama.llama_sampler_accept(repeat, token)
        add(repeat)
    if has_penalty(sampling):
        penalties = (sampling.frequency_penalty, sampling.presence_penalty)
        add(llama.llama_sampler_init_penalties(num_vocab, context_size, 1.0, *penalties))
    if sampling.temperature == 0:
        add(llama.llama_sampler_init_greedy())
        return chain
    if sampling.top_k > 0:
        add(llama.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1:
        add(llama.llama_sampler_init_typical(sampling.typical_p, 1))
    if sampling.top_p < 1:
        add(llama.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        add(llama.llama_sampler_init_min_p(sampling.min_p, 1))
    add(llama.llama_sampler_init_temp(sampling.temperature))
    seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(4), "little")
    add(llama.llama_sampler_init_dist(seed))
    return chain
