"""llama.cpp's sampler chains: how a request's `Sampling` becomes one."""

from __future__ import annotations

import os
from typing import Any, Final

import llama_cpp as llama

from engine.messages import Sampling
from engine.sequence import Sequence

_PENALTY_WINDOW: Final = 64


def is_plainly_greedy(sampling: Sampling) -> bool:
    """Temperature 0 without penalties: the largest logit, nothing to remember."""
    return sampling.temperature == 0 and not _has_penalty(sampling) and sampling.repeat_penalty == 1


def _has_penalty(sampling: Sampling) -> bool:
    return sampling.frequency_penalty != 0 or sampling.presence_penalty != 0


def sampler_chain(sequence: Sequence, num_vocab: int, context_size: int) -> Any:  # Any: a pointer
    """llama.cpp's samplers in its own usual order.

    `repeat_penalty` looks at the prompt's last tokens too, as llama.cpp's users know it; OpenAI's two penalties count
    the answer only, so they get a sampler of their own that has not seen the prompt.
    """
    sampling = sequence.sampling
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())

    def add(sampler: Any) -> None:  # Any: a pointer
        llama.llama_sampler_chain_add(chain, sampler)

    if sampling.repeat_penalty != 1:
        repeat = llama.llama_sampler_init_penalties(num_vocab, _PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
        for token in sequence.tokens[-_PENALTY_WINDOW:]:
            llama.llama_sampler_accept(repeat, token)
        add(repeat)
    if _has_penalty(sampling):
        penalties = (sampling.frequency_penalty, sampling.presence_penalty)
        add(llama.llama_sampler_init_penalties(num_vocab, context_size, 1.0, *penalties))
    if sampling.temperature == 0:
        add(llama.llama_sampler_init_greedy())
        return chain
    if sampling.top_k > 0:
        add(llama.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        add(llama.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        add(llama.llama_sampler_init_min_p(sampling.min_p, 1))
    add(llama.llama_sampler_init_temp(sampling.temperature))
    seed = sampling.seed if sampling.seed is not None else int.from_bytes(os.urandom(4), "little")
    add(llama.llama_sampler_init_dist(seed))
    return chain
