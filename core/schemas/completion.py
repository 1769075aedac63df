"""Schemas of the bodies of text completions, which continue a prompt without a template, and of embeddings."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from core.models.fields.sampling import TokenLimitOrZero
from core.schemas.base import Input, TokenIds, Unsupported, as_inputs
from core.schemas.generation import UNSUPPORTED, GenerationBody, ModelRequest

MAX_PROMPTS: Final = 128
MAX_INPUTS: Final = 2048
MAX_DIMENSIONS: Final = 1 << 16
MAX_LOGPROBS: Final = 20
DEFAULT_TOKENS: Final = 16  # OpenAI's default; a model file may set another

Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
)
_Text = Annotated[str, StringConstraints(min_length=1)]
Inputs = (
    _Text
    | Annotated[list[_Text], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
)


class CompletionBody(GenerationBody):
    """`POST /v1/completions`. Each of several prompts gets `n` answers, in the order of the prompts."""

    default_tokens: ClassVar[int | None] = DEFAULT_TOKENS
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {  # Any: JSON values
        **UNSUPPORTED,
        "suffix": ("",),
        "max_completion_tokens": (),
        "top_logprobs": (),
        "prompt_logprobs": (),
        "prompt_embeds": (),
        "tools": ([],),
    }

    prompt: Prompt
    max_tokens: TokenLimitOrZero | None = None  # with 0 only the prompt is scored
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1)

    @field_validator("best_of")
    @classmethod
    def _is_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Refuse to compute more answers than are returned."""
        if value is not None and value != (info.data.get("n") or 1):
            raise Unsupported("'best_of' other than 'n' is not supported by this server; use 'n'.")
        return value

    @property
    def prompts(self) -> list[Input]:
        """The prompts as a list."""
        return as_inputs(self.prompt)

    @property
    def num_answers(self) -> int:
        return (self.n or 1) * len(self.prompts)


class EmbeddingBody(ModelRequest):
    """`POST /v1/embeddings`. `dimensions` keeps that many numbers of a vector, and normalises it again."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {  # Any: JSON values
        "stream": (False,),
        "truncate_prompt_tokens": (),
        "messages": (),
    }

    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, le=MAX_DIMENSIONS)

    @property
    def inputs(self) -> list[Input]:
        """The inputs as a list."""
        return as_inputs(self.input)
