"""The body of a text completion, OpenAI's older endpoint: a prompt that is continued, without a template."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, ValidationInfo, field_validator

from core.schemas.base import Input, TokenIds, Unsupported, as_inputs
from core.schemas.generation import UNSUPPORTED, GenerationBody

MAX_PROMPTS: Final = 128
MAX_LOGPROBS: Final = 20
DEFAULT_TOKENS: Final = 16  # OpenAI's, where neither the request nor the model's file says

Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionBody(GenerationBody):
    """`POST /v1/completions`. Each of several prompts gets `n` answers, in the order of the prompts."""

    default_tokens: ClassVar[int | None] = DEFAULT_TOKENS
    not_done: ClassVar[dict[str, tuple[Any, ...]]] = {  # Any: JSON values
        **UNSUPPORTED,
        "suffix": ("",),
        "max_completion_tokens": (),
        "top_logprobs": (),
        "prompt_logprobs": (),
        "prompt_embeds": (),
        "tools": ([],),
    }

    prompt: Prompt
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1)

    @field_validator("best_of")
    @classmethod
    def _is_n(cls, value: int | None, info: ValidationInfo) -> int | None:
        """More answers than are shown would be computed and thrown away."""
        if value is not None and value != (info.data.get("n") or 1):
            raise Unsupported("'best_of' other than 'n' is not supported by this server; use 'n'.")
        return value

    @property
    def prompts(self) -> list[Input]:
        """Each prompt by itself."""
        return as_inputs(self.prompt)

    @property
    def num_answers(self) -> int:
        """To all prompts together."""
        return (self.n or 1) * len(self.prompts)
