"""What text is generated with: what the body says, else what the model's file says, else what changes nothing.

The workers ask the engine for it, and the api shows it of an answer that was given.
"""

from __future__ import annotations

from core.model_files import Parameters
from core.schemas.generation import GenerationBody
from core.schemas.objects import ResponseModel


class GenerationParameters(ResponseModel):
    """`max_tokens` of null: until the model stops or its context is full. The defaults change nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    max_tokens: int | None = None


def effective_parameters(body: GenerationBody, model: Parameters) -> GenerationParameters:
    """Of a body and the parameters of its model's file."""
    asked = {name: getattr(body, name) for name in GenerationParameters.model_fields}
    asked["max_tokens"] = body.max_answer_tokens
    usual = {**_plain(body), **{name: getattr(model, name) for name in asked if getattr(model, name) is not None}}
    return GenerationParameters(**{**usual, **{name: value for name, value in asked.items() if value is not None}})


def _plain(body: GenerationBody) -> dict[str, int]:
    """Endpoints that end an answer where nobody says."""
    return {} if body.default_tokens is None else {"max_tokens": body.default_tokens}
