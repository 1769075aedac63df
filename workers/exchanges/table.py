"""One row for each endpoint of `core.wire.endpoints`: how its bodies become exchanges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from core.wire.endpoints import CHAT_ENDPOINT, COMPLETIONS_ENDPOINT, EMBEDDINGS_ENDPOINT, RESPONSES_ENDPOINT
from workers.exchanges.base import Exchange
from workers.exchanges.chat import ChatExchange
from workers.exchanges.completions import CompletionExchange
from workers.exchanges.embeddings import EmbeddingExchange
from workers.exchanges.responses import ResponsesExchange

EXCHANGES: Final[dict[str, Callable[[Any], Exchange]]] = {  # Any: parsed JSON
    CHAT_ENDPOINT: ChatExchange.read,
    COMPLETIONS_ENDPOINT: CompletionExchange.read,
    EMBEDDINGS_ENDPOINT: EmbeddingExchange.read,
    RESPONSES_ENDPOINT: ResponsesExchange.read,
}


def read_exchange(endpoint: str, body: Any) -> Exchange:  # Any: parsed JSON
    """A body of an endpoint; raises the ApiError that the endpoint would answer."""
    return EXCHANGES[endpoint](body)
