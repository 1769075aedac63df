"""One row for each endpoint of `core.schemas.endpoints`: how its bodies become exchanges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from core.schemas.endpoints import CHAT_ENDPOINT, COMPLETIONS_ENDPOINT, EMBEDDINGS_ENDPOINT, RESPONSES_ENDPOINT
from workers.generation.endpoints.base import Exchange
from workers.generation.endpoints.chat import ChatExchange
from workers.generation.endpoints.completions import CompletionExchange
from workers.generation.endpoints.embeddings import EmbeddingExchange
from workers.generation.endpoints.responses import ResponsesExchange

EXCHANGES: Final[dict[str, Callable[[Any], Exchange]]] = {  # Any: parsed JSON
    CHAT_ENDPOINT: ChatExchange.read,
    COMPLETIONS_ENDPOINT: CompletionExchange.read,
    EMBEDDINGS_ENDPOINT: EmbeddingExchange.read,
    RESPONSES_ENDPOINT: ResponsesExchange.read,
}


def read_exchange(endpoint: str, body: Any) -> Exchange:  # Any: parsed JSON
    """A body of an endpoint; raises the ApiError that the endpoint would answer."""
    return EXCHANGES[endpoint](body)
