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
from workers.generation.endpoints.base import Answered, Ask, Asker, Frames, Head
from workers.generation.endpoints.chat import ChatExchange


@dataclass(frozen=True, slots=True)
class ResponsesExchange:
    """See `Exchange`."""

    request: ResponsesRequest
    chat: ChatExchange

    @classmethod
    def read(cls, body: Any) -> ResponsesExchange:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        request = parse_body(ResponsesRequest, body)
        try:
            return cls(request, ChatExchange.read(chat_body_of(request)))
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

    def asks(self, model: ModelConfig, asker: Asker) -> list[Ask]:
        """See `Exchange`."""
        return self.chat.asks(model, asker)

    def answer(self, head: Head, outcome: Answered) -> str:
        """See `Exchange`."""
        completion = json.loads(self.chat.answer(head, outcome))
        return response_of(completion, self.request).model_dump_json(by_alias=True)

    def frames(self, head: Head, *, is_watched: bool = False) -> Frames | None:
        """A line is not streamed; what is asked for at once is run as a chat."""
        del head, is_watched
        return None

    def problem(self, failed: Failed) -> Problem:
        """See `Exchange`."""
        return as_responses_problem(self.chat.problem(failed))

    def defect(self, outcome: Answered) -> Problem | None:
        """A structured answer that was cut off."""
        found = self.chat.defect(outcome)
        return None if found is None else as_responses_problem(found)

    def texts(self) -> Iterator[str]:
        """See `Exchange`."""
        return self.chat.texts()

    def expected_tokens(self, model: ModelConfig) -> int:
        """See `Exchange`."""
        return self.chat.expected_tokens(model)

    def has_one_answer(self, model: ModelConfig) -> bool:
        """See `Exchange`."""
        return self.chat.has_one_answer(model)
