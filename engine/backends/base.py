"""The seam to a model: what a backend is.

An engine is a process with one model. Requests come in over its socket (`engine.process.protocol`) and outputs go out; the rest
of the service sees nothing of the backend behind them:

    Request, EmbedRequest, ForwardRequest  →  Delta …, then once: Finished, Embedded or Failed;  EngineLost if the process ends

A backend that computes is a `Backend`: a tokenizer, a decoder, and perhaps an embedder. The engine around it renders and encodes
prompts, compiles constraints, decides which sequences are in a step and in which slot, turns tokens into text, and ends a request
at its stop strings and limits. The backend only computes steps:

    plan = scheduler.plan()                         # at most `slots` sequences, tokens of prompts and of answers side by side
    decoder.update_memory(plan.forks, plan.shifts)  # copies of cached prefixes, trims
    results = decoder.run(plan)                     # a token of each sampled entry, by its sampling parameters and constraint
    outputs = scheduler.apply(plan, results)

A backend that passes requests on to a server is an engine process of its own (`engine.upstream`), with the same socket and
messages.

Capabilities are stated in `core.models.capabilities`, one frozen value for each backend: is a chat template rendered here, are
there logprobs, constraints, tools, seeds, biases, embeddings, a prefix cache, slots side by side; and which keys of a model file
it reads. The service refuses a request for anything else before it is queued, so a backend never gets one.

Every backend keeps these promises, to which `tests/conformance` holds it:

* A request ends exactly once. Its deltas, whole characters without the beginning of a stop string, add up to its final text.
* A request that fails, for a prompt too long or a schema that cannot be compiled, fails alone, with a sentence for the user.
* A cancel ends a request within a step, whether it runs or waits.
* The in-flight log names the requests of the running step, so that a crash has suspects; an `exclusive` request is alone in its
  steps.
* The process may end at any time. Nothing is kept in it that a client could miss: requests are lost, and sent again.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import SampleResult, Shift, StepPlan
from engine.tokenizer import Tokenizer
from engine.tuning.lab import Lab


class Decoder(Protocol):
    """Computes steps. Only the thread of the loop uses it."""

    @property
    def build(self) -> str:
        """Name and version of the computing library."""

    @property
    def slots(self) -> int:
        """Number of sequences that run side by side."""

    @property
    def spare_slots(self) -> int:
        """Number of slots beyond those."""

    @property
    def traits(self) -> MemoryTraits:
        """Properties of its memory."""

    @property
    def max_drafts(self) -> int:
        """Maximum of draft tokens per sequence and step; 0 without speculation."""

    def first_position(self, slot: int) -> int:
        """The first position that the memory of a slot still has."""

    def open(self, sequence: Sequence) -> None:
        """Prepare to sample a sequence; called again after the sequence lost its slot."""

    def close(self, sequence: Sequence) -> None:
        """Free the state of a sequence; no effect if it was never opened."""

    def update_memory(self, forks: list[Fork], shifts: list[Shift]) -> None:
        """Copy, trim, clear and shift slots, in order."""

    def run(self, plan: StepPlan) -> list[SampleResult]:
        """Compute the entries of a step; return one result for each sampled entry, in order.

        Raises OutOfKvMemory when memory is short and nothing was computed, DecodeFailed when the step is lost.
        """

    def reset(self) -> None:
        """Clear every slot: at the start, and after a failed step."""

    def warm_up(self) -> None:
        """Compute one token and forget it, so that the speed of the model is known before its first step.

        It does not bind the calling thread to a core, since the engine starts its other threads afterwards.
        """


@runtime_checkable
class LayoutChanger(Protocol):
    """A decoder with traits that allow another layout."""

    def change_layout(self) -> None:
        """Go on with an empty memory of the other layout, or of the same if there is no room; the traits say which it is."""


class InputPiece(msgspec.Struct, frozen=True, gc=False):
    """Tokens of an input from position `start` on, which continue its tokens in `slot`; after the last ones the slot is free."""

    slot: int
    start: int
    tokens: list[int]
    is_last: bool


class Embedder(Protocol):
    """Computes vectors. Only the thread of the loop uses it.

    Its slots hold `max_tokens` of unfinished inputs beside a step of `step_tokens`.
    """

    @property
    def dimensions(self) -> int:
        """Length of a vector."""

    @property
    def max_tokens(self) -> int:
        """Maximum of tokens in an input."""

    @property
    def step_tokens(self) -> int:
        """Maximum of tokens in a step, unless it is one input that cannot be split."""

    @property
    def slots(self) -> int:
        """Maximum of inputs in a step."""

    @property
    def can_split(self) -> bool:
        """May an input be computed in several steps? False if its tokens attend to later ones."""

    def warm_up(self) -> None:
        """Compute one token and forget it."""

    def embed(self, pieces: list[InputPiece]) -> NDArray[np.float32]:
        """Compute a step in one decode; return (inputs that end in it, dimensions), each of length 1. Raises DecodeFailed."""

    def clear(self, slot: int) -> None:
        """Free the slot of an unfinished input."""

    def reset(self) -> None:
        """Free all slots: after a failed step."""


class Backend(Protocol):
    """A loaded model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Converts text to token ids and back."""

    @property
    def decoder(self) -> Decoder:
        """Computes steps."""

    def grammar_tokenizer(self) -> LLTokenizer:
        """Build the vocabulary for grammars; takes up to a second."""

    @property
    def lab(self) -> Lab | None:
        """Times steps with the settings that are left to measurement; None where the backend has none."""

    @property
    def embedder(self) -> Embedder | None:
        """Computes vectors; None unless the model file enables embeddings."""
