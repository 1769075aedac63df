"""The decoder of a model that generates nothing."""

from __future__ import annotations

from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import SampleResult, Shift, StepPlan


class EmbeddingsOnly:
    """The decoder of a model that generates nothing: it has no slot, so nobody ever runs on it."""

    build = "embeddings"
    slots = 0
    spare_slots = 0
    traits = MemoryTraits()
    max_drafts = 0

    def first_position(self, slot: int) -> int:
        """There are no slots."""
        raise AssertionError(slot)

    def open(self, sequence: Sequence) -> None:
        """Nobody comes here."""

    def close(self, sequence: Sequence) -> None:
        """Nobody comes here."""

    def update_memory(self, forks: list[Fork], shifts: list[Shift]) -> None:
        """There is no memory."""

    def run(self, plan: StepPlan) -> list[SampleResult]:
        """There is nothing to run."""
        raise AssertionError(plan)

    def reset(self) -> None:
        """There is no memory."""
