"""Chat completions as an exchange."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from core.errors import Problem
from core.model_files import ModelConfig
from core.schemas.base import parse_body
from core.schemas.chat import ChatRequest
from engine.types import Failed, Finished
from workers.generation.chat_response import ChunkFrames, completion, problem_of, truncated_problem
from workers.generation.endpoints.base import (
    EngineRequest,
    EngineResult,
    RequestOrigin,
    ResponseHeader,
    StreamEncoder,
    is_greedy_once,
)
from workers.generation.engine_request import to_engine_request

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class ChatAdapter:
    """See `Exchange`."""

    body: ChatRequest

    @classmethod
    def read(cls, body: Any) -> ChatAdapter:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(ChatRequest, body))

    @property
    def model(self) -> str:
        """See `Exchange`."""
        return self.body.model

    @property
    def num_inputs(self) -> int:
        """See `Exchange`."""
        return 0

    def engine_requests(self, model: ModelConfig, asker: RequestOrigin) -> list[EngineRequest]:
        """See `Exchange`."""
        job_id, tenant, priority, group = asker.job_id, asker.tenant, asker.priority, asker.group
        return [to_engine_request(job_id, self.body, model, tenant=tenant, priority=priority, group=group)]

    def answer(self, head: ResponseHeader, outcome: EngineResult) -> str:
        """See `Exchange`."""
        assert isinstance(outcome, Finished), "text was asked for"
        return completion(head.job_id, head.model, head.fingerprint, outcome)

    def frames(self, head: ResponseHeader, *, is_watched: bool = False) -> StreamEncoder | None:
        """See `Exchange`."""
        if not (self.body.stream or is_watched):
            return None
        include_usage = self.body.include_usage or is_watched
        return ChunkFrames(head.job_id, head.model, head.fingerprint, include_usage=include_usage)

    def problem(self, failed: Failed) -> Problem:
        """See `Exchange`."""
        return problem_of(failed)

    def reject_reason(self, outcome: EngineResult) -> Problem | None:
        """A structured answer that was cut off."""
        return truncated_problem(outcome, self.body)

    def texts(self) -> Iterator[str]:
        """In the order in which templates render them: tools stand with the system prompt, before what differs."""
        if self.body.tools:
            yield _encode([tool.model_dump(exclude_unset=True) for tool in self.body.tools]).decode()
        for message in self.body.messages:
            role = "system" if message.role == "developer" else message.role
            calls = _encode(message.tool_calls).decode() if message.tool_calls else ""
            yield f"{role}\n{message.text()}{calls}"

    def expected_tokens(self, model: ModelConfig) -> int:
        """Without a limit, that of the context."""
        limit = self.body.max_answer_tokens or model.parameters.max_tokens
        return min(limit or model.context_size, model.context_size)

    def is_deterministic(self, model: ModelConfig) -> bool:
        """See `Exchange`."""
        return is_greedy_once(self.body, model)
