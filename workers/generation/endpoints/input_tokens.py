"""Adapter of `/v1/responses/input_tokens`: the prompt of a chat is counted, and nothing is generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from core.models.model_files import ModelConfig
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from core.schemas.responses.objects import InputTokens
from engine.types import Request
from workers.generation.endpoints.base import EngineRequest, EngineResult, RequestOrigin, ResponseHeader
from workers.generation.endpoints.chat import ChatAdapter


@dataclass(frozen=True)
class InputTokensAdapter(ChatAdapter):
    """A chat of which the engine only counts the prompt: `max_tokens` of 0. The api has translated the request."""

    is_metered = False

    @classmethod
    def parse(cls, body: Any) -> InputTokensAdapter:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(ChatRequest, body))

    def engine_requests(self, model: ModelConfig, origin: RequestOrigin) -> list[EngineRequest]:
        (request,) = super().engine_requests(model, origin)
        assert isinstance(request, Request), "a chat generates text"
        return [msgspec.structs.replace(request, max_tokens=0, n=1, constraint=None, stream=False)]

    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        del header
        return InputTokens(input_tokens=result.usage.prompt_tokens).model_dump_json()
