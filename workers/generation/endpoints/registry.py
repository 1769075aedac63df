"""The adapter of each endpoint of `core.schemas.endpoints`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from core.errors import ApiError
from core.models.engine_options import BackendKind
from core.models.model_files import ModelConfig
from core.schemas.endpoints import (
    CHAT_ENDPOINT,
    COMPLETIONS_ENDPOINT,
    EMBEDDINGS_ENDPOINT,
    INPUT_TOKENS_ENDPOINT,
    RESPONSES_ENDPOINT,
)
from core.schemas.generation import ModelRequest
from workers.generation.endpoints.base import EndpointAdapter, RefusedAdapter
from workers.generation.endpoints.chat import ChatAdapter
from workers.generation.endpoints.completions import CompletionAdapter
from workers.generation.endpoints.embeddings import EmbeddingAdapter
from workers.generation.endpoints.forward import (
    ForwardedChatAdapter,
    ForwardedCompletionAdapter,
    ForwardedEmbeddingAdapter,
    ForwardedResponsesAdapter,
)
from workers.generation.endpoints.input_tokens import InputTokensAdapter
from workers.generation.endpoints.responses import ResponsesAdapter

_Parse = Callable[[Any], EndpointAdapter]  # Any: parsed JSON

ADAPTERS: Final[dict[str, _Parse]] = {
    CHAT_ENDPOINT: ChatAdapter.parse,
    COMPLETIONS_ENDPOINT: CompletionAdapter.parse,
    EMBEDDINGS_ENDPOINT: EmbeddingAdapter.parse,
    RESPONSES_ENDPOINT: ResponsesAdapter.parse,
    INPUT_TOKENS_ENDPOINT: InputTokensAdapter.parse,
}
FORWARD_ADAPTERS: Final[dict[str, _Parse]] = {
    CHAT_ENDPOINT: ForwardedChatAdapter.parse,
    COMPLETIONS_ENDPOINT: ForwardedCompletionAdapter.parse,
    EMBEDDINGS_ENDPOINT: ForwardedEmbeddingAdapter.parse,
    RESPONSES_ENDPOINT: ForwardedResponsesAdapter.parse,
}


def read_adapter(endpoint: str, body: Any, model: ModelConfig | None) -> EndpointAdapter:  # Any: parsed JSON
    """Parse a body of an endpoint for its model, None if that is unknown; raises the ApiError that the endpoint would answer."""
    is_forwarded = model is not None and model.backend is BackendKind.OPENAI
    return (FORWARD_ADAPTERS if is_forwarded else ADAPTERS)[endpoint](body)


def read_accepted(endpoint: str, body: Any, model: ModelConfig) -> EndpointAdapter:  # Any: parsed JSON
    """Parse a body that was accepted. Since then its model may have got a backend that does not take it: then it fails."""
    try:
        return read_adapter(endpoint, body, model)
    except ApiError as error:
        return RefusedAdapter(ModelRequest(model=model.name), error.problem)
