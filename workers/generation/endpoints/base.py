"""Endpoint adapter: turns a body of one endpoint into engine requests, and their results into a response.

Everything else in the workers (claims, leases, shards, the plan) treats all endpoints alike.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from core.errors import Problem
from core.models.model_files import ModelConfig
from core.schemas.chunks import usage_object
from core.schemas.generation import GenerationBody, ModelRequest
from core.telemetry.origin import Origin
from engine.process.client import EngineLost
from engine.types import AnyRequest, Delta, Embedded, Failed, Finished, Priority, Usage
from workers.generation.problems import to_problem, truncated_problem

EngineRequest = AnyRequest
EngineResult = Finished | Embedded
EngineOutcome = EngineResult | Failed | EngineLost


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOrigin:
    """The job behind an engine request, and its place in the scheduler; see `engine.types.Request`.

    `trace` is the span that a server upstream continues.
    """

    job_id: str
    tenant: str
    priority: Priority
    group: str = ""
    trace: Origin = field(default_factory=Origin)

    @property
    def trace_headers(self) -> dict[str, str]:
        """W3C's headers of the trace, if there is one."""
        headers = {"traceparent": self.trace.traceparent, "tracestate": self.trace.tracestate}
        return {name: value for name, value in headers.items() if value}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHeader:
    """The fields that a response and all chunks of its stream share; `created` is in unix seconds."""

    job_id: str
    model: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self, object_type: str) -> dict[str, object]:
        """The JSON fields, in OpenAI's order."""
        return {
            "id": self.job_id,
            "object": object_type,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class StreamEncoder(ABC):
    """Encodes the chunks of one stream."""

    @abstractmethod
    def encode_delta(self, delta: Delta) -> list[bytes]:
        """Chunks with more of one choice."""

    @abstractmethod
    def encode_end(self, finished: Finished) -> list[bytes]:
        """Chunks with the finish reason of each choice, and the usage if the client asked for it."""


@dataclass(frozen=True)
class EndpointAdapter(ABC):
    """One parsed body. The defaults fit an endpoint that generates nothing; `GenerationAdapter` has those for text.

    `is_metered`: its tokens count as usage of the key.
    """

    is_metered: ClassVar[bool] = True
    body: ModelRequest

    @property
    def model(self) -> str:
        """The model's name or alias, as the body has it."""
        return self.body.model

    @property
    def num_inputs(self) -> int:
        """Inputs to embed."""
        return 0

    @abstractmethod
    def engine_requests(self, model: ModelConfig, origin: RequestOrigin) -> list[EngineRequest]:
        """One request or several, with different ids; the first has the id of the job."""

    @abstractmethod
    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        """The whole answer, as a plain request gets it and as the job's row keeps it."""

    def stream_encoder(self, header: ResponseHeader, *, is_watched: bool = False) -> StreamEncoder | None:
        """An encoder if the body asks for a stream, or if a client watches this line (then with usage)."""
        del header, is_watched
        return None

    def refusal(self, job_id: str) -> Failed | None:
        """The failure of a body that no engine gets."""
        del job_id
        return None

    def to_problem(self, failed: Failed) -> Problem:
        """The engine's error, with the parameter names of this endpoint."""
        return to_problem(failed)

    def reject_reason(self, result: EngineResult) -> Problem | None:
        """The error that a batch line gets instead of this result, if the result is no valid answer."""
        del result
        return None

    def prompt_texts(self) -> Iterator[str]:
        """The prompt in pieces, in the order in which the model reads them. The plan places common beginnings together."""
        return iter(())

    def expected_tokens(self, model: ModelConfig) -> int:
        """The most tokens that all answers together may have."""
        del model
        return 0

    def is_deterministic(self, model: ModelConfig) -> bool:
        """Does the same body always get the same answer?"""
        del model
        return True


@dataclass(frozen=True)
class RefusedAdapter(EndpointAdapter):
    """A body that its model does not take any more."""

    problem: Problem

    def refusal(self, job_id: str) -> Failed | None:
        return Failed(request_id=job_id, code=self.problem.code or "invalid_value", message=self.problem.message)

    def to_problem(self, failed: Failed) -> Problem:
        del failed
        return self.problem

    def engine_requests(self, model: ModelConfig, origin: RequestOrigin) -> list[EngineRequest]:
        del model, origin
        return []

    def encode_response(self, header: ResponseHeader, result: EngineResult) -> str:
        del header, result
        raise AssertionError("it is never run")


class TextAdapter(EndpointAdapter):
    """A body that is answered with text, which may be streamed."""

    def stream_encoder(self, header: ResponseHeader, *, is_watched: bool = False) -> StreamEncoder | None:
        if not (self.body.is_stream or is_watched):
            return None
        return self.new_stream_encoder(header, include_usage=self.body.include_usage or is_watched)

    @abstractmethod
    def new_stream_encoder(self, header: ResponseHeader, *, include_usage: bool) -> StreamEncoder:
        """The encoder of this endpoint's chunks."""


class GenerationAdapter(TextAdapter):
    """A body of which our own engines generate the text."""

    body: GenerationBody

    def reject_reason(self, result: EngineResult) -> Problem | None:
        return truncated_problem(result, self.body)

    def is_deterministic(self, model: ModelConfig) -> bool:
        """True of a single greedy answer."""
        temperature = self.body.temperature if self.body.temperature is not None else model.parameters.temperature
        return temperature == 0 and self.body.n in (None, 1) and not self.body.stream


def to_usage(usage: Usage) -> dict[str, object]:
    """OpenAI's `usage` of generated text."""
    return usage_object(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )
