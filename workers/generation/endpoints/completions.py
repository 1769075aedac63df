"""Adapter of `/v1/completions`: each prompt is an engine request of its own, and their answers are one object."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from core.errors import Problem
from core.models.model_files import ModelConfig
from core.schemas.base import Input, parse_body
from core.schemas.completion import DEFAULT_TOKENS, CompletionBody
from engine.types import Failed, Finished, Priority, Request, TextPrompt, TokenPrompt
from workers.generation.endpoints.base import (
    EngineRequest,
    EngineResult,
    GenerationAdapter,
    RequestOrigin,
    ResponseHeader,
    StreamEncoder,
)
from workers.generation.endpoints.completion_response import CompletionStreamEncoder, text_completion
from workers.generation.engine_request import constraint_of, sampling_of

_PARAM_NAMES: Final = {"messages": "prompt"}  # the engine uses the names of a chat


@dataclass(frozen=True)
class CompletionAdapter(GenerationAdapter):
    """A text completion, of one prompt or several."""

    body: CompletionBody

    @classmethod
    def parse(cls, body: Any) -> CompletionAdapter:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(CompletionBody, body))

    def engine_requests(self, model: ModelConfig, origin: RequestOrigin) -> list[EngineRequest]:
        """One for each prompt; their ids are the job's, then `JOB.1`, `JOB.2` …"""
        first, *others = self.body.prompts
        ids = [f"{origin.job_id}.{number}" for number, _ in enumerate(others, 1)]
        return [
            self._engine_request(request_id, prompt, model, origin)
            for request_id, prompt in zip([origin.job_id, *ids], [first, *others], strict=True)
        ]

    def _engine_request(self, request_id: str, prompt: Input, model: ModelConfig, origin: RequestOrigin) -> Request:
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
            stream=body.is_stream and origin.priority is Priority.CHAT,
            priority=origin.priority,
            tenant=origin.tenant,
            group=origin.group,
        )

    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        assert isinstance(result, Finished), "a completion generates text"
        return text_completion(header, result, is_echo=bool(self.body.echo))

    def new_stream_encoder(self, header: ResponseHeader, *, include_usage: bool) -> StreamEncoder:
        return CompletionStreamEncoder(header, is_echo=bool(self.body.echo), include_usage=include_usage)

    def to_problem(self, failed: Failed) -> Problem:
        problem = super().to_problem(failed)
        return msgspec.structs.replace(problem, param=_PARAM_NAMES.get(problem.param or "", problem.param))

    def prompt_texts(self) -> Iterator[str]:
        """The prompts; token ids are written as decimal numbers, since the plan only compares."""
        for prompt in self.body.prompts:
            yield prompt if isinstance(prompt, str) else " ".join(map(str, prompt))

    def expected_tokens(self, model: ModelConfig) -> int:
        return min(_max_tokens(self.body, model), model.context_size) * self.body.num_answers


def to_prompt(given: Input) -> TextPrompt | TokenPrompt:
    """Wrap a text, which the engine tokenises, or token ids, which it takes as they are."""
    return TextPrompt(text=given) if isinstance(given, str) else TokenPrompt(tokens=given)


def _max_tokens(body: CompletionBody, model: ModelConfig) -> int:
    return body.max_tokens if body.max_tokens is not None else model.parameters.max_tokens or DEFAULT_TOKENS
