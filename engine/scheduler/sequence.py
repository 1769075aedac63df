"""A sequence: one output being generated, with its tokens and its progress. Only the thread of the loop changes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.outputs.output_stream import OutputSpec
from engine.structured.grammar import GrammarState
from engine.types import FinishReason, Priority, RequestKey, SamplingParams, TokenLogprob


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The first `length` tokens of a sequence are to be copied before more than `latest` are computed.

    `is_known`: another prompt diverges there.
    """

    length: int
    latest: int
    is_known: bool


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """`tokens` are prompt and output; `num_computed` of them are in the memory of the slot.

    `index` is the position among the choices of the request, `spec` describes the allowed output, and `constraint` is the
    state of this output in its grammar.
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
    snapshot: Snapshot | None = None
    arrival: int = 0
    admission: int = 0
    finish_reason: FinishReason | None = None

    @property
    def key(self) -> RequestKey:
        """Client and id of the request, which all its choices share."""
        return self.client, self.request_id

    @property
    def num_generated(self) -> int:
        """Tokens of the output, including an end-of-generation token."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        """Tokens not yet computed: the rest of the prompt, or those just sampled or forced."""
        return len(self.tokens) - self.num_computed

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Are the logprobs of the prompt requested? Then all of it is computed, and no slot is reused."""
        return self.echo and self.logprobs is not None

    @property
    def is_prefilling(self) -> bool:
        """Is the sequence still computing the tokens that it had when it got its slot?"""
        return self.num_computed < self.prefill_until
