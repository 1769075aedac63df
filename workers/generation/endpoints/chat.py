"""Adapter of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from core.models.model_files import ModelConfig
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from engine.types import Finished
from workers.generation.endpoints.base import (
    EngineRequest,
    EngineResult,
    GenerationAdapter,
    RequestOrigin,
    ResponseHeader,
    StreamEncoder,
)
from workers.generation.endpoints.chat_response import ChatStreamEncoder, chat_completion
from workers.generation.engine_request import to_engine_request

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class ChatAdapter(GenerationAdapter):
    """A chat: one engine request, whatever `n` is."""

    body: ChatRequest

    @classmethod
    def parse(cls, body: Any) -> ChatAdapter:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(ChatRequest, body))

    def engine_requests(self, model: ModelConfig, origin: RequestOrigin) -> list[EngineRequest]:
        return [
            to_engine_request(
                origin.job_id,
                self.body,
                model,
                tenant=origin.tenant,
                priority=origin.priority,
                group=origin.group,
            )
        ]

    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        assert isinstance(result, Finished), "a chat generates text"
        return chat_completion(header, result)

    def new_stream_encoder(self, header: ResponseHeader, *, include_usage: bool) -> StreamEncoder:
        return ChatStreamEncoder(header, include_usage=include_usage)

    def prompt_texts(self) -> Iterator[str]:
        """In the order in which templates render them: tools stand with the system prompt, before what differs."""
        if self.body.tools:
            yield _encode([tool.model_dump(exclude_unset=True) for tool in self.body.tools]).decode()
        for message in self.body.messages:
            role = "system" if message.role == "developer" else message.role
            calls = _encode(message.tool_calls).decode() if message.tool_calls else ""
            yield f"{role}\n{message.text()}{calls}"

    def expected_tokens(self, model: ModelConfig) -> int:
        """The limit of the body or of the model file, else the context size."""
        limit = self.body.max_answer_tokens or model.parameters.max_tokens
        return min(limit or model.context_size, model.context_size)
