"""Texts and token ids as completions and embeddings take them: one or several, each spelled out or tokenised.

Whether a model has a token is the engine's to judge.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

MAX_INPUT_TOKENS: Final = 1 << 20

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_INPUT_TOKENS)]
Input = str | list[int]


def as_inputs(value: str | list[str] | list[int] | list[list[int]]) -> list[Input]:
    """Each text, or list of token ids, by itself."""
    if isinstance(value, str):
        return [value]
    if value and isinstance(value[0], int):
        return [[token for token in value if isinstance(token, int)]]
    return [one for one in value if not isinstance(one, int)]
