"""Effective sampling parameters: the value of the body, else of the model file, else the neutral one.

Workers send them to the engine, and the api shows them with a stored answer.
"""

from __future__ import annotations

from core.model_files import Parameters
from core.schemas.generation import GenerationBody
from core.schemas.objects import ResponseModel


class GenerationParameters(ResponseModel):
    """The defaults are neutral; with `max_tokens` of null, an answer ends with the model's stop or a full context."""

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
    """Merge a body and the parameters of its model file."""
    of_endpoint = {"max_tokens": body.default_tokens}
    of_file = {name: getattr(model, name) for name in GenerationParameters.model_fields}
    of_body = {name: getattr(body, name) for name in of_file} | {"max_tokens": body.max_answer_tokens}
    layers = (of_endpoint, of_file, of_body)
    return GenerationParameters(**{k: v for layer in layers for k, v in layer.items() if v is not None})
