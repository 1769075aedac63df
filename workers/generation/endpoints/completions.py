"""Text completions as an exchange: each prompt is a request of its own, and their answers are one object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from core.errors import Problem
from core.model_files import ModelConfig
from core.schemas.base import Input, parse_body
from core.schemas.completion import DEFAULT_TOKENS, CompletionBody
from engine.types import Failed, Finished, Priority, Request, TextPrompt, TokenPrompt
from workers.generation.chat_response import problem_of, truncated_problem
from workers.generation.endpoints.base import (
    EngineRequest,
    EngineResult,
    RequestOrigin,
    ResponseHeader,
    StreamEncoder,
    is_greedy_once,
)
from workers.generation.endpoints.completion_response import CompletionFrames, text_completion
from workers.generation.engine_request import constraint_of, sampling_of

_OUR_NAMES: Final = {"messages": "prompt"}  # the engine speaks of a chat


@dataclass(frozen=True, slots=True)
class CompletionAdapter:
    """See `Exchange`."""

    body: CompletionBody

    @classmethod
    def read(cls, body: Any) -> CompletionAdapter:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(CompletionBody, body))

    @property
    def model(self) -> str:
        """See `Exchange`."""
        return self.body.model

    @property
    def num_inputs(self) -> int:
        """See `Exchange`."""
        return 0

    def engine_requests(self, model: ModelConfig, asker: RequestOrigin) -> list[EngineRequest]:
        """One for each prompt."""
        first, *others = self.body.prompts
        ids = [f"{asker.job_id}.{number}" for number, _ in enumerate(others, 1)]
        return [
            self._ask(request_id, prompt, model, asker)
            for request_id, prompt in zip([asker.job_id, *ids], [first, *others], strict=True)
        ]

    def _ask(self, request_id: str, prompt: Input, model: ModelConfig, asker: RequestOrigin) -> Request:
        body = self.body
        return Request(
            id=request_id,
            prompt=to_prompt(prompt),
            sampling=sampling_of(body, model.parameters, request_id),
            max_tokens=_max_tokens(body, model),
            n=body.n or 1,
            stop=body.stop_strings,
            ignore_eos=bool(body.ignore_eos),
            constraint=constraint_of(body),
            logprobs=body.logprobs,
            echo=bool(body.echo),
            stream=body.is_stream and asker.priority is Priority.CHAT,
            priority=asker.priority,
            tenant=asker.tenant,
            group=asker.group,
        )

    def answer(self, head: ResponseHeader, outcome: EngineResult) -> str:
        """See `Exchange`."""
        assert isinstance(outcome, Finished), "text was asked for"
        return text_completion(head, outcome, is_echo=bool(self.body.echo))

    def frames(self, head: ResponseHeader, *, is_watched: bool = False) -> StreamEncoder | None:
        """See `Exchange`."""
        if not (self.body.stream or is_watched):
            return None
        include_usage = self.body.include_usage or is_watched
        return CompletionFrames(head, is_echo=bool(self.body.echo), include_usage=include_usage)

    def problem(self, failed: Failed) -> Problem:
        """See `Exchange`."""
        problem = problem_of(failed)
        return msgspec.structs.replace(problem, param=_OUR_NAMES.get(problem.param or "", problem.param))

    def reject_reason(self, outcome: EngineResult) -> Problem | None:
        """A structured answer that was cut off."""
        return truncated_problem(outcome, self.body)

    def texts(self) -> Iterator[str]:
        """The prompts; token ids are spelled out, since the plan compares and does not read."""
        for prompt in self.body.prompts:
            yield prompt if isinstance(prompt, str) else " ".join(map(str, prompt))

    def expected_tokens(self, model: ModelConfig) -> int:
        """Of all answers together."""
        return min(_max_tokens(self.body, model), model.context_size) * self.body.num_answers

    def is_deterministic(self, model: ModelConfig) -> bool:
        """See `Exchange`."""
        return is_greedy_once(self.body, model)


def to_prompt(given: Input) -> TextPrompt | TokenPrompt:
    """A text is tokenised by the engine; token ids are taken as they are."""
    return TextPrompt(text=given) if isinstance(given, str) else TokenPrompt(tokens=given)


def _max_tokens(body: CompletionBody, model: ModelConfig) -> int:
    return body.max_tokens or model.parameters.max_tokens or DEFAULT_TOKENS
