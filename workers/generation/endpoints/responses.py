"""Adapter of batch lines for `/v1/responses`: each is run as a chat. Only the line itself is stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from core.errors import ApiError, Problem
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from core.schemas.responses.chat import as_responses_problem, chat_body_of
from core.schemas.responses.objects import response_of
from core.schemas.responses.request import ResponsesRequest
from engine.types import Failed
from workers.generation.endpoints.base import EndpointAdapter, EngineResult, ResponseHeader, StreamEncoder
from workers.generation.endpoints.chat import ChatAdapter


@dataclass(frozen=True)
class ResponsesLine(EndpointAdapter):
    """A Responses request that the adapter of a chat runs: its answer and errors have the shape of the Responses API."""

    request: ResponsesRequest

    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        completion = json.loads(super().encode_response(header, result))  # type: ignore[safe-super]  # of the chat's adapter
        return response_of(completion, self.request).model_dump_json(by_alias=True)

    def stream_encoder(self, header: ResponseHeader, *, is_watched: bool = False) -> StreamEncoder | None:
        del header, is_watched
        return None

    def to_problem(self, failed: Failed) -> Problem:
        return as_responses_problem(super().to_problem(failed))

    def reject_reason(self, result: EngineResult) -> Problem | None:
        problem = super().reject_reason(result)
        return None if problem is None else as_responses_problem(problem)


@dataclass(frozen=True)
class ResponsesAdapter(ResponsesLine, ChatAdapter):
    """A Responses request, and in `body` the chat that it means."""

    @classmethod
    def parse(cls, body: Any) -> ResponsesAdapter:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        request = parse_body(ResponsesRequest, body)
        with responses_errors():
            return cls(body=parse_body(ChatRequest, chat_body_of(request)), request=request)


@contextmanager
def responses_errors() -> Iterator[None]:
    """Translate the errors of a chat body into those of the request that it was made of."""
    try:
        yield
    except ApiError as error:
        raise ApiError(as_responses_problem(error.problem)) from None
