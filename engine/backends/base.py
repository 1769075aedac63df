"""The seam between the engine and what computes: a tokenizer, a decoder and an embedder, real or fake."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray

from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import SampleResult, Shift, StepPlan
from engine.tokenizer import Tokenizer


class Decoder(Protocol):
    """Computes steps. Used by the loop's thread only."""

    @property
    def build(self) -> str:
        """What computes, with its version."""

    @property
    def slots(self) -> int:
        """Sequences that run side by side."""

    @property
    def spare_slots(self) -> int:
        """Slots beyond those."""

    @property
    def traits(self) -> MemoryTraits:
        """What its memory allows."""

    @property
    def max_drafts(self) -> int:
        """Most guessed tokens of one sequence in a step; 0 where guessing does not pay."""

    def first_position(self, slot: int) -> int:
        """The first position that a slot's memory still has."""

    def open(self, sequence: Sequence) -> None:
        """A sequence will be sampled; called again when it had lost its slot."""

    def close(self, sequence: Sequence) -> None:
        """It will not be any more; nothing happens when it never was opened."""

    def update_memory(self, forks: list[Fork], shifts: list[Shift]) -> None:
        """Copy, trim, clear and shift slots, in order."""

    def run(self, plan: StepPlan) -> list[SampleResult]:
        """Compute a step's entries; one result for each sampled one, in order.

        Raises NoRoom when memory is short and nothing was computed, DecodeFailed when the step is lost.
        """

    def reset(self) -> None:
        """Clear every slot: at the beginning, and after a failed step."""


class Embedder(Protocol):
    """Computes vectors. Used by the loop's thread only."""

    @property
    def dimensions(self) -> int:
        """Numbers of a vector."""

    @property
    def max_tokens(self) -> int:
        """The longest prompt."""

    def embed(self, prompts: list[list[int]]) -> NDArray[np.float32]:
        """(prompts, dimensions), each of length 1. No prompt is longer than `max_tokens`. Raises DecodeFailed."""


class Backend(Protocol):
    """A loaded model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""

    @property
    def decoder(self) -> Decoder:
        """Computes steps."""

    def grammar_tokenizer(self) -> LLTokenizer:
        """The vocabulary for constraints; takes up to a second."""

    @property
    def embedder(self) -> Embedder | None:
        """Computes vectors, where the model file asks for that."""
