"""The adapter of each endpoint of `core.schemas.endpoints`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from core.schemas.endpoints import (
    CHAT_ENDPOINT,
    COMPLETIONS_ENDPOINT,
    EMBEDDINGS_ENDPOINT,
    INPUT_TOKENS_ENDPOINT,
    RESPONSES_ENDPOINT,
)
from workers.generation.endpoints.base import EndpointAdapter
from workers.generation.endpoints.chat import ChatAdapter
from workers.generation.endpoints.completions import CompletionAdapter
from workers.generation.endpoints.embeddings import EmbeddingAdapter
from workers.generation.endpoints.input_tokens import InputTokensAdapter
from workers.generation.endpoints.responses import ResponsesAdapter

ADAPTERS: Final[dict[str, Callable[[Any], EndpointAdapter]]] = {  # Any: parsed JSON
    CHAT_ENDPOINT: ChatAdapter.parse,
    COMPLETIONS_ENDPOINT: CompletionAdapter.parse,
    EMBEDDINGS_ENDPOINT: EmbeddingAdapter.parse,
    RESPONSES_ENDPOINT: ResponsesAdapter.parse,
    INPUT_TOKENS_ENDPOINT: InputTokensAdapter.parse,
}


def read_adapter(endpoint: str, body: Any) -> EndpointAdapter:  # Any: parsed JSON
    """Parse a body of an endpoint; raises the ApiError that the endpoint would answer."""
    return ADAPTERS[endpoint](body)
