"""Lab: a memory of its own beside the one that serves, in which steps of the loaded model are timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.config import EngineConfig, KvLayout, Switch


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The settings that are compared."""

    kv_layout: KvLayout
    flash_attention: Switch
    ubatch_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """Make an empty memory of these sequences, with room for `cells` tokens of each."""

    choice: Choice
    sequences: int
    cells: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """Compute the next tokens of the first sequence, as those of a prompt; without room for them, as its first ones."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Copy the first sequence into cells of their own for each other one."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Compute one token of each of the first `sequences`, with its logits, and forget it where the memory can."""

    sequences: int


Task = SetUp | Prompt | Spread | Rows


class Lab(Protocol):
    """Measures a loaded model. Only the thread of the loop uses it.

    `threads` are those of this process that compute a step; 0 where a GPU does.
    """

    @property
    def threads(self) -> int: ...

    @property
    def config(self) -> EngineConfig:
        """The settings with which the decoder serves."""

    @property
    def most_slots(self) -> int:
        """Sequences beyond which no more speed is expected of this device. Raises ModelFailed."""

    def most_sequences(self, cells: int) -> int:
        """The sequences of so many cells for which memory is free, as far as they may pay; 0 where the model decodes nothing."""

    def compute(self, task: Task) -> bool:
        """Run a task to its end, with the device; False if it cannot be done here."""

    def close(self) -> None:
        """Free the memory of the last SetUp."""

    def apply(self, config: EngineConfig) -> bool:
        """Let the decoder serve with these settings, as far as they need no more memory; return whether it has a new one.

        Raises ModelFailed if that does not fit: then the memory is new as well, with the settings of before.
        """
