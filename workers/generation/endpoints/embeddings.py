"""Embeddings as an exchange: one request for all inputs, a vector for each."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from core.errors import Problem
from core.model_files import ModelConfig
from core.schemas.base import parse_body
from core.schemas.embedding import EmbeddingBody
from engine.types import Embedded, EmbedRequest, Failed
from workers.generation.chat_response import problem_of
from workers.generation.endpoints.base import EngineRequest, EngineResult, RequestOrigin, ResponseHeader, StreamEncoder
from workers.generation.endpoints.completions import to_prompt

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class EmbeddingAdapter:
    """See `Exchange`."""

    body: EmbeddingBody

    @classmethod
    def read(cls, body: Any) -> EmbeddingAdapter:  # Any: parsed JSON
        """Raises the ApiError that the endpoint would answer."""
        return cls(parse_body(EmbeddingBody, body))

    @property
    def model(self) -> str:
        """See `Exchange`."""
        return self.body.model

    @property
    def num_inputs(self) -> int:
        """See `Exchange`."""
        return len(self.body.inputs)

    def engine_requests(self, model: ModelConfig, asker: RequestOrigin) -> list[EngineRequest]:
        """See `Exchange`."""
        del model  # it has no defaults for this
        return [
            EmbedRequest(
                id=asker.job_id,
                inputs=[to_prompt(given) for given in self.body.inputs],
                dimensions=self.body.dimensions,
                priority=asker.priority,
                tenant=asker.tenant,
            )
        ]

    def answer(self, head: ResponseHeader, outcome: EngineResult) -> str:
        """OpenAI's list of embeddings, in the order of the inputs."""
        assert isinstance(outcome, Embedded), "vectors were asked for"
        write = _base64 if self.body.encoding_format == "base64" else _floats
        data = [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(outcome.vectors)
        ]
        tokens = outcome.usage.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _encode({"object": "list", "data": data, "model": head.model, "usage": usage}).decode()

    def frames(self, head: ResponseHeader, *, is_watched: bool = False) -> StreamEncoder | None:
        """There is no stream of embeddings."""
        del head, is_watched
        return None

    def problem(self, failed: Failed) -> Problem:
        """See `Exchange`."""
        return problem_of(failed)

    def reject_reason(self, outcome: EngineResult) -> Problem | None:
        """A vector is a vector."""
        del outcome
        return None

    def texts(self) -> Iterator[str]:
        """Nothing is shared, so lines stay as the file has them."""
        return iter(())

    def expected_tokens(self, model: ModelConfig) -> int:
        """Nothing is generated."""
        del model
        return 0

    def is_deterministic(self, model: ModelConfig) -> bool:
        """Vectors are computed, not drawn."""
        del model
        return True


def _base64(vector: bytes) -> str:
    """Little-endian float32, as the engine has it and the official client reads it."""
    return base64.b64encode(vector).decode()


def _floats(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
