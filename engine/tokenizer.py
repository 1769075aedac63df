"""The tokenizer protocol, and the check of token ids."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from engine.errors import InvalidPrompt


class Tokenizer(Protocol):
    """Converts text to token ids and back. Every method may be called from any thread."""

    @property
    def num_vocab(self) -> int:
        """Size of the vocabulary; token ids are below it."""

    @property
    def bos_text(self) -> str:
        """Spelling of the token that begins a text; empty when there is none."""

    @property
    def eos_text(self) -> str:
        """Spelling of the token that ends a text."""

    @property
    def special_texts(self) -> tuple[str, ...]:
        """Spellings of all control tokens."""

    @property
    def chat_template(self) -> str | None:
        """Jinja chat template of the model; None when there is none."""

    @property
    def tool_template(self) -> str | None:
        """Jinja chat template for requests with tools; None when there is no other than `chat_template`."""

    @property
    def adds_space(self) -> bool:
        """Does `encode` begin a text with a space, as vocabularies of SentencePiece do?"""

    def encode(
        self, text: str, *, special: bool, add_bos: bool, add_end: bool = False, continues: bool = False
    ) -> list[int]:
        """Encode a text. `special` turns spellings of control tokens into those.

        `add_bos` lets the model add its own start, and `add_end` its start and its end, which a text to embed needs. A text that
        `continues` another one gets no space in front.
        """

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""

    def is_end(self, token: int) -> bool:
        """Does this token end a generation?"""


def check_token_ids(tokens: Collection[int], num_vocab: int, *, param: str, advice: str = "") -> None:
    """Raise InvalidPrompt about `param`, with some advice, for an id outside the vocabulary."""
    if tokens and not (min(tokens) >= 0 and max(tokens) < num_vocab):
        raise InvalidPrompt(f"Token ids must be from 0 to {num_vocab - 1}.{advice}", param=param)
