"""The decoder of a model that generates no text."""

from __future__ import annotations

from engine.scheduler.sequence import Sequence
from engine.scheduler.slots import Fork, MemoryTraits
from engine.scheduler.step import SampleResult, Shift, StepPlan


class EmbeddingsOnly:
    """The decoder of a model that generates no text: it has no slot, so no sequence ever runs on it."""

    build = "embeddings"
    slots = 0
    spare_slots = 0
    traits = MemoryTraits()
    max_drafts = 0

    def first_position(self, slot: int) -> int:
        raise AssertionError(slot)

    def open(self, sequence: Sequence) -> None: ...

    def close(self, sequence: Sequence) -> None: ...

    def update_memory(self, forks: list[Fork], shifts: list[Shift]) -> None: ...

    def run(self, plan: StepPlan) -> list[SampleResult]:
        raise AssertionError(plan)

    def reset(self) -> None: ...

    def warm_up(self) -> None: ...
