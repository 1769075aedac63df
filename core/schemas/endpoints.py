"""Table of the endpoints that run a model, at once or as lines of a batch, and the check that a model can run a body.

`workers.generation.endpoints` has the translation of their bodies and answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from core import ids
from core.errors import bad_request
from core.models.capabilities import CAPABILITIES, FEATURES, Feature, refusal
from core.models.model_files import ModelConfig
from core.schemas.chat import ChatRequest
from core.schemas.completion import CompletionBody, EmbeddingBody
from core.schemas.generation import ModelRequest
from core.schemas.response_format import ResponseFormat
from core.schemas.responses.request import ResponsesRequest

CHAT_ENDPOINT: Final = "/v1/chat/completions"
COMPLETIONS_ENDPOINT: Final = "/v1/completions"
EMBEDDINGS_ENDPOINT: Final = "/v1/embeddings"
RESPONSES_ENDPOINT: Final = "/v1/responses"
INPUT_TOKENS_ENDPOINT: Final = "/v1/responses/input_tokens"  # counts and generates nothing, so no batch has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An endpoint: the schema of its bodies, the prefix of its job ids, and whether its model must embed."""

    path: str
    body: type[ModelRequest]
    id_prefix: str
    needs_embeddings: bool = False

    def check(self, model: ModelConfig, body: ModelRequest) -> None:
        """Raise a 400 when the model does not serve this endpoint, or its backend lacks something that the body asks for."""
        if self.needs_embeddings:
            check_feature(model, Feature.EMBEDDINGS, "model")
        for feature, param in _asked(body):
            check_feature(model, feature, param)
        if self.needs_embeddings and not model.embeddings:
            message = f"The model '{model.name}' does not embed. A model does with `embeddings: true` in its file."
            raise bad_request(message, code="invalid_value", param="model")


ENDPOINTS: Final = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint(path=CHAT_ENDPOINT, body=ChatRequest, id_prefix=ids.CHAT),
        Endpoint(path=COMPLETIONS_ENDPOINT, body=CompletionBody, id_prefix=ids.COMPLETION),
        Endpoint(path=EMBEDDINGS_ENDPOINT, body=EmbeddingBody, id_prefix=ids.EMBEDDING, needs_embeddings=True),
        Endpoint(path=RESPONSES_ENDPOINT, body=ResponsesRequest, id_prefix=ids.CHAT),  # run as chats
    )
}


def check_feature(model: ModelConfig, feature: Feature, param: str) -> None:
    """Raise a 400 when the backend of the model lacks a feature; `param` is the field that asks for it."""
    if feature not in CAPABILITIES[model.backend]:
        raise bad_request(refusal(model.name, model.backend, feature), code="unsupported_parameter", param=param)


def _asked(body: ModelRequest) -> Iterator[tuple[Feature, str]]:
    """The features that a body asks for, each with the field that does."""
    for feature, asked in FEATURES.items():
        for field in asked.fields:
            value = getattr(body, field, None)
            if _is_given(value):
                yield feature, field
    if isinstance(body, CompletionBody):
        if body.echo and body.logprobs is not None:
            yield Feature.PROMPT_LOGPROBS, "logprobs"
        if not all(isinstance(prompt, str) for prompt in body.prompts):
            yield Feature.TOKEN_PROMPTS, "prompt"
    if isinstance(body, EmbeddingBody) and not all(isinstance(given, str) for given in body.inputs):
        yield Feature.TOKEN_PROMPTS, "input"


def _is_given(value: object) -> bool:
    """Does a field ask for something? A number of logprobs of 0 does, and an answer format of plain text does not."""
    if isinstance(value, ResponseFormat):
        return value.type != "text"
    return type(value) is int or bool(value)


def endpoint_of_line(line: bytes) -> str:
    """The `url` of a batch line, or the chat endpoint if it has none. The endpoint may be one that does not exist."""
    try:
        url = json.loads(line)["url"]
    except (ValueError, KeyError, TypeError):
        return CHAT_ENDPOINT
    return url if isinstance(url, str) and url.startswith("/v1/") else CHAT_ENDPOINT
