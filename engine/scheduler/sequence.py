"""A request's answer being generated: its tokens, how far they are computed, and where it goes.

Knows token ids. Owned by the scheduler, which alone changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.outputs.output_stream import OutputSpec
from engine.structured.grammar import GrammarState
from engine.types import FinishReason, Priority, SamplingParams, TokenLogprob


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """`tokens` is prompt and answer; `num_computed` of them are in the slot's memory.

    `index` is its place among the answers to one request, `spec` what these may hold, `constraint` how far this one has come
    in what it must look like.
    """

    client: str
    request_id: str
    tokens: list[int]
    num_prompt_tokens: int
    max_tokens: int | None
    sampling: SamplingParams
    spec: OutputSpec
    ignore_eos: bool
    stream: bool
    priority: Priority
    index: int = 0
    tenant: str = ""
    group: str = ""
    exclusive: bool = False
    logprobs: int | None = None
    echo: bool = False
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    constraint: GrammarState | None = None
    slot: int | None = None
    num_computed: int = 0
    num_cached: int | None = None
    num_shifted: int = 0
    prefill_until: int = 0
    snapshot_at: int | None = None
    arrival: int = 0
    admission: int = 0
    finish_reason: FinishReason | None = field(default=None)

    @property
    def key(self) -> tuple[str, str]:
        """What a cancel names: the request, with all its answers."""
        return self.client, self.request_id

    @property
    def num_generated(self) -> int:
        """Tokens of the answer, an end-of-generation token included."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        """Tokens that are known and not yet computed: the rest of the prompt, or those just sampled or forced."""
        return len(self.tokens) - self.num_computed

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Does it want to know how likely its prompt is? Then all of that is computed, whatever a slot may hold."""
        return self.echo and self.logprobs is not None

    @property
    def is_prefilling(self) -> bool:
        """Is it still reading what it knew when it got its slot?"""
        return self.num_computed < self.prefill_until
