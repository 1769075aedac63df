"""The tokenizer of a model, as the engine uses it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from engine.errors import InvalidPrompt


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


def check_token_ids(tokens: Collection[int], num_vocab: int, *, param: str) -> None:
    """Raises InvalidPrompt about `param` for an id that is not in the vocabulary."""
    if tokens and not (min(tokens) >= 0 and max(tokens) < num_vocab):
        raise InvalidPrompt(f"Token ids must be from 0 to {num_vocab - 1}.", param=param)
