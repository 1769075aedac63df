"""The values of one step: copies between slots, the tokens to compute, and the results.

Values that are made for each sequence are `msgspec.Struct`s, which cost a tenth of a frozen dataclass to make.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from engine.errors import EngineError
from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork
from engine.types import TokenLogprob


@dataclass(frozen=True, slots=True)
class Shift:
    """Make room in a full slot: drop `discard` positions after the first `keep`, and move the rest down."""

    slot: int
    keep: int
    discard: int


class StepEntry(msgspec.Struct, frozen=True, gc=False):
    """`tokens` of a sequence at positions `start`… in its slot; the last `num_rows` of them give logits.

    The last `num_drafts` tokens are drafts, which are kept as far as the model agrees. With `wants_prompt_logprobs` every
    token is a row, since the logprobs of the prompt are requested.
    """

    sequence: Sequence
    slot: int
    start: int
    tokens: list[int]
    num_rows: int
    num_drafts: int = 0
    wants_prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Memory operations in order, then entries in order of computation, with no more tokens than the budget."""

    entries: list[StepEntry]
    forks: list[Fork] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole step."""
        return sum(len(entry.tokens) for entry in self.entries)

    @property
    def sampled(self) -> list[StepEntry]:
        """Entries that give new tokens, in batch order."""
        return [entry for entry in self.entries if entry.num_rows]


@dataclass(slots=True)
class TokenCounts:
    """Tokens since the engine started; `cached` ones are part of `prompt`. What is computed again counts again."""

    prompt: int = 0
    cached: int = 0
    output: int = 0


class SampleResult(msgspec.Struct, frozen=True, gc=False):
    """New tokens of one entry: accepted drafts, then the sampled token, then those that its constraint forces.

    `logprobs` are those of the sampled tokens, in order, where requested; `prompt_logprobs` those of prompt tokens. A prompt
    chunk that only computes logprobs gives no token. `is_complete`: the constraint allows no more tokens. `failure`: this
    output cannot go on; the other outputs of the step can.
    """

    tokens: list[int]
    num_accepted: int = 0
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    is_complete: bool = False
    failure: EngineError | None = None
