"""Table of the endpoints that run a model, at once or as lines of a batch.

`workers.generation.endpoints` has the translation of their bodies and answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from core import ids
from core.errors import bad_request
from core.models.model_files import ModelConfig
from core.schemas.chat import ChatRequest
from core.schemas.completion import CompletionBody, EmbeddingBody
from core.schemas.generation import ModelRequest
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

    def check_model(self, model: ModelConfig) -> None:
        """Raise a 400 when the model does not serve this endpoint."""
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


def endpoint_of_line(line: bytes) -> str:
    """The `url` of a batch line, or the chat endpoint if it has none. The endpoint may be one that does not exist."""
    try:
        url = json.loads(line)["url"]
    except (ValueError, KeyError, TypeError):
        return CHAT_ENDPOINT
    return url if isinstance(url, str) and url.startswith("/v1/") else CHAT_ENDPOINT
