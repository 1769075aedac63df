"""From a request to a sequence: the work that can be done beside the decoding thread. Knows prompts and limits."""

from __future__ import annotations

from engine.messages import Request
from engine.prompts import PromptEncoder
from engine.sequence import Sequence


def to_sequence(client: str, request: Request, encoder: PromptEncoder, stopwords: list[str]) -> Sequence:
    """Render, tokenise and check; raises an EngineError that says what is wrong with the request."""
    tokens = encoder.encode(request)
    return Sequence(
        client=client,
        request_id=request.id,
        tokens=tokens,
        num_prompt_tokens=len(tokens),
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        stop=[*request.stop, *stopwords],
        ignore_eos=request.ignore_eos,
        stream=request.stream,
        priority=request.priority,
    )
