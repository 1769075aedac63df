"""The seam between the engine and what decodes: a tokenizer and a decoder, real or fake."""

from __future__ import annotations

from typing import Protocol

from engine.scheduler import Plan
from engine.sequence import Sequence


class Tokenizer(Protocol):
    """Text to token ids and back. Every method may be called from any thread."""

    @property
    def num_vocab(self) -> int:
        """Token ids are below this."""

    @property
    def bos_text(self) -> str:
        """Spelling of the token that begins a text; empty when there is none."""

    @property
    def eos_text(self) -> str:
        """Spelling of the token that ends one."""

    @property
    def special_texts(self) -> tuple[str, ...]:
        """Spellings of all control tokens."""

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja template."""

    def encode(self, text: str, *, special: bool, add_bos: bool) -> list[int]:
        """Token ids. With `special`, spellings of control tokens become those tokens; `add_bos` lets the model add its own."""

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; control tokens stand for none."""

    def is_end(self, token: int) -> bool:
        """Does this token end a generation?"""


class Decoder(Protocol):
    """Computes steps. Used by the loop's thread only."""

    @property
    def build(self) -> str:
        """What computes, with its version."""

    def open(self, sequence: Sequence) -> None:
        """A sequence has got its slot; the slot's memory is empty."""

    def run(self, plan: Plan) -> list[int]:
        """Compute a step; one token for each sampled entry, in order. Raises DecodeFailed."""

    def release(self, sequence: Sequence) -> None:
        """A sequence leaves its slot: clear the slot's memory."""

    def reset(self) -> None:
        """Clear everything after a failed step."""


class Backend(Protocol):
    """A loaded model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""

    @property
    def decoder(self) -> Decoder:
        """Computes steps."""
