"""The endpoints that run a model, at once or as lines of a batch: one row says what each takes.

How a body is asked of an engine and its answer written is the workers' part (`workers.generation.endpoints`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core import ids
from core.errors import bad_request
from core.model_files import ModelConfig
from core.schemas.chat import ChatRequest
from core.schemas.completion import CompletionBody, EmbeddingBody
from core.schemas.generation import ModelRequest
from core.schemas.responses.request import ResponsesRequest

CHAT_ENDPOINT: Final = "/v1/chat/completions"
COMPLETIONS_ENDPOINT: Final = "/v1/completions"
EMBEDDINGS_ENDPOINT: Final = "/v1/embeddings"
RESPONSES_ENDPOINT: Final = "/v1/responses"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What an endpoint takes: bodies of a type, for models that embed where `needs_embeddings`; ids of its jobs begin alike."""

    path: str
    body: type[ModelRequest]
    id_prefix: str
    needs_embeddings: bool = False

    def check_model(self, model: ModelConfig) -> None:
        """Raises the 400 of a model that cannot do this."""
        if self.needs_embeddings and not model.embeddings:
            message = f"The model '{model.name}' does not embed. A model does with `embeddings: true` in its file."
            raise bad_request(message, code="invalid_value", param="model")


ENDPOINTS: Final = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint(path=CHAT_ENDPOINT, body=ChatRequest, id_prefix=ids.CHAT),
        Endpoint(path=COMPLETIONS_ENDPOINT, body=CompletionBody, id_prefix=ids.COMPLETION),
        Endpoint(path=EMBEDDINGS_ENDPOINT, body=EmbeddingBody, id_prefix=ids.EMBEDDING, needs_embeddings=True),
        Endpoint(path=RESPONSES_ENDPOINT, body=ResponsesRequest, id_prefix=ids.CHAT),  # a chat job in other words
    )
}
