"""Sampling parameters: names, types and bounds, for request bodies and model files alike."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, Field

MAX_TOKENS: Final = 1 << 20  # more than any context: no limit


def _for_minus_one(value: int) -> BeforeValidator:
    """Read -1, which other servers use for "off", as this value."""
    return BeforeValidator(lambda given: value if type(given) is int and given == -1 else given)


TokenLimit = Annotated[int, Field(ge=1, le=MAX_TOKENS), _for_minus_one(MAX_TOKENS)]
TokenLimitOrZero = Annotated[int, Field(ge=0, le=MAX_TOKENS), _for_minus_one(MAX_TOKENS)]
TopK = Annotated[int, Field(ge=0, le=1 << 20), _for_minus_one(0)]


class SamplingFields(BaseModel):
    """The fields that both a request and a model file may set; None leaves a parameter to the next of them.

    Their order is part of `ModelConfig.answers_hash`. `core.schemas.generation` has their neutral values. Both have a seed of
    their own: the range of OpenAI's is wider than the engine's.
    """

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: TopK | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    max_tokens: TokenLimit | None = None
