"""An exchange: a body of one endpoint, what an engine is asked for it, and how the answer is written.

Everything else in the workers (claims, leases, shards, the plan) treats all exchanges alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from core.errors import Problem
from core.model_files import ModelConfig
from core.schemas.generation import GenerationBody
from engine.process.client import EngineLost
from engine.types import Delta, Embedded, EmbedRequest, Failed, Finished, Priority, Request, Usage

EngineRequest = Request | EmbedRequest
EngineResult = Finished | Embedded
EngineOutcome = EngineResult | Failed | EngineLost


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOrigin:
    """The job that asks, and how it stands among others; see `engine.types.Request`."""

    job_id: str
    tenant: str
    priority: Priority
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHeader:
    """What an answer says before it says anything; `created` is in unix seconds."""

    job_id: str
    model: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))


class StreamEncoder(Protocol):
    """The frames of one stream: `more` with each delta, then `last`."""

    def more(self, delta: Delta) -> list[bytes]:
        """Some more of an answer."""

    def last(self, finished: Finished) -> list[bytes]:
        """Why each answer ended, and what all of them used if the caller asked."""


class EndpointAdapter(Protocol):
    """One body, parsed."""

    @property
    def model(self) -> str:
        """What the body calls it."""

    @property
    def num_inputs(self) -> int:
        """Inputs to embed."""

    def engine_requests(self, model: ModelConfig, asker: RequestOrigin) -> list[EngineRequest]:
        """What an engine is asked: one request or several, with different ids, the first of which is the job's."""

    def answer(self, head: ResponseHeader, outcome: EngineResult) -> str:
        """The whole answer, as a plain request gets it and as the job's row keeps it."""

    def frames(self, head: ResponseHeader, *, is_watched: bool = False) -> StreamEncoder | None:
        """For the stream the body asks for, or for those who watch a line, usage included; None for a plain answer."""

    def problem(self, failed: Failed) -> Problem:
        """What an engine could not do, in the words of this endpoint."""

    def reject_reason(self, outcome: EngineResult) -> Problem | None:
        """Why what was generated is no answer for a line of a batch."""

    def texts(self) -> Iterator[str]:
        """What the model reads, in order: bodies that begin alike are planned side by side."""

    def expected_tokens(self, model: ModelConfig) -> int:
        """The length an answer may have."""

    def is_deterministic(self, model: ModelConfig) -> bool:
        """Would the same body get the same answer again?"""


def is_greedy_once(body: GenerationBody, model: ModelConfig) -> bool:
    """True of a single greedy answer."""
    temperature = body.temperature if body.temperature is not None else model.parameters.temperature
    return temperature == 0 and body.n in (None, 1) and not body.stream


def usage_object(usage: Usage) -> dict[str, object]:
    """OpenAI's `usage` of text that was generated."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
