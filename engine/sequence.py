"""A request being generated: its tokens, how far they are computed, and where it goes.

Knows token ids. Owned by the scheduler, which alone changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.messages import FinishReason, Priority, Sampling


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """`tokens` is prompt and answer; `num_computed` of them are in the slot's memory."""

    client: str
    request_id: str
    tokens: list[int]
    num_prompt_tokens: int
    max_tokens: int | None
    sampling: Sampling
    stop: list[str]
    ignore_eos: bool
    stream: bool
    priority: Priority
    slot: int | None = None
    num_computed: int = 0
    num_cached: int = 0
    finish_reason: FinishReason | None = field(default=None)

    @property
    def key(self) -> tuple[str, str]:
        """What a cancel names."""
        return self.client, self.request_id

    @property
    def num_generated(self) -> int:
        """Tokens of the answer, an end-of-generation token included."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_todo(self) -> int:
        """Tokens that are known and not yet computed: the rest of the prompt, or the one just sampled."""
        return len(self.tokens) - self.num_computed
