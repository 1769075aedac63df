"""From a request to its sequences: the work that can be done beside the decoding thread. Knows prompts and limits."""

from __future__ import annotations

import msgspec

from engine.messages import Request, Sampling
from engine.prompts import PromptEncoder
from engine.sequence import Sequence


def to_sequences(client: str, request: Request, encoder: PromptEncoder, stopwords: list[str]) -> list[Sequence]:
    """Render, tokenise and check; one sequence for each answer asked for. Raises an EngineError that says what is wrong."""
    tokens = encoder.encode(request)
    return [
        Sequence(
            client=client,
            request_id=request.id,
            index=index,
            tokens=list(tokens),
            num_prompt_tokens=len(tokens),
            max_tokens=request.max_tokens,
            sampling=_sampling(request.sampling, index),
            stop=[*request.stop, *stopwords],
            ignore_eos=request.ignore_eos,
            logprobs=request.logprobs,
            stream=request.stream,
            priority=request.priority,
            tenant=request.tenant,
            group=request.group,
        )
        for index in range(request.n)
    ]


def _sampling(sampling: Sampling, index: int) -> Sampling:
    """Several answers from one seed must differ, and be the same ones next time."""
    if index == 0 or sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + index) % 2**32)
