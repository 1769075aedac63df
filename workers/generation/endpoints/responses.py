"""Lines of `/v1/responses` as exchanges: a chat in other words. Nothing is kept of them but the line itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.errors import ApiError, Problem
from core.model_files import ModelConfig
from core.schemas.base import parse_body
from core.schemas.responses.chat import as_responses_problem, chat_body_of
from core.schemas.responses.objects import response_of
from core.schemas.responses.request import ResponsesRequest
from engine.types import Failed
from workers.generation.endpoints.base import EngineRequest, EngineResult, RequestOrigin, ResponseHeader, StreamEncoder
from workers.generation.endpoints.chat import ChatAdapter


@dataclass(frozen=True, slots=True)
class ResponsesAdapter:
    """See `Exchange`."""

    request: ResponsesRequest
    chat: ChatAdapter

    @classmethod
    def read(cls, body: Any) -> ResponsesAdapter:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        request = parse_body(ResponsesRequest, body)
        try:
            return cls(request, ChatAdapter.read(chat_body_of(request)))
        except ApiError as error:
            raise ApiError(as_responses_problem(error.problem)) from None

    @property
    def model(self) -> str:
        """See `Exchange`."""
        return self.chat.model

    @property
    def num_inputs(self) -> int:
        """See `Exchange`."""
        return 0

    def engine_requests(self, model: ModelConfig, asker: RequestOrigin) -> list[EngineRequest]:
        """See `Exchange`."""
        return self.chat.engine_requests(model, asker)

    def answer(self, head: ResponseHeader, outcome: EngineResult) -> str:
        """See `Exchange`."""
        completion = json.loads(self.chat.answer(head, outcome))
        return response_of(completion, self.request).model_dump_json(by_alias=True)

    def frames(self, head: ResponseHeader, *, is_watched: bool = False) -> StreamEncoder | None:
        """A line is not streamed; what is asked for at once is run as a chat."""
        del head, is_watched
        return None

    def problem(self, failed: Failed) -> Problem:
        """See `Exchange`."""
        return as_responses_problem(self.chat.problem(failed))

    def reject_reason(self, outcome: EngineResult) -> Problem | None:
        """A structured answer that was cut off."""
        found = self.chat.reject_reason(outcome)
        return None if found is None else as_responses_problem(found)

    def texts(self) -> Iterator[str]:
        """See `Exchange`."""
        return self.chat.texts()

    def expected_tokens(self, model: ModelConfig) -> int:
        """See `Exchange`."""
        return self.chat.expected_tokens(model)

    def is_deterministic(self, model: ModelConfig) -> bool:
        """See `Exchange`."""
        return self.chat.is_deterministic(model)
