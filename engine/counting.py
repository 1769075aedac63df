"""How many tokens a prompt has, for estimates and for refusing what cannot fit before it is queued.

Knows prompts; needs a vocabulary, no weights and no context.
"""

from __future__ import annotations

from engine.backend import Tokenizer
from engine.embedding import encode_inputs
from engine.messages import EmbedRequest, Request
from engine.prompts import PromptEncoder


class PromptCounter:
    """Counts the prompts of one model exactly as its engine does. `template` overrides the model's own."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, context_size: int) -> None:
        self._tokenizer = tokenizer
        self._encoder = PromptEncoder(tokenizer, template=template, context_size=context_size)

    def count(self, request: Request | EmbedRequest) -> int:
        """The `prompt_tokens` of its usage. Raises what the engine would refuse it with."""
        if isinstance(request, EmbedRequest):
            return sum(map(len, encode_inputs(request, self._tokenizer)))
        return len(self._encoder.encode(request))
